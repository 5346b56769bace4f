"""What is no file of weights, or one that does not fit, is named in one line."""

import os
import pickle
import re

import pytest
import torch

from dinojax import errors
from dinojax.weights import formats
from tests.weights import samples


def drop(arrays, pattern):
  return {k: x for k, x in arrays.items() if not re.search(pattern, k)}


@pytest.mark.parametrize(
  "change, message",
  [
    (
      lambda a: drop(a, r"blocks\.1\."),
      r"blocks\.1\.attn\.proj\.bias is missing.* more",
    ),
    (
      lambda a: drop(a, r"ls2") | {"blocks.0.ls3.gamma": a["norm.bias"]},
      r"blocks\.0\.ls2\.gamma is missing; blocks\.0\.ls3\.gamma is left over",
    ),
    (lambda a: drop(a, "^norm.bias"), r"norm\.bias is missing$"),
    (lambda a: a | {"linear.weight": a["norm.bias"]}, r"linear\.weight is left over$"),
    (
      lambda a: a | {"blocks.2.norm1.bias": a["norm.bias"][:-1]},
      r"blocks\.2\.norm1\.bias is \[63\], not \[64\]$",
    ),
    (lambda a: drop(a, "cls_token"), r"no cls_token, but .* \.\.\.; give"),
    (
      lambda a: drop(a, "pos_embed"),
      r"no whole DINOv2 backbone: 'pos_embed' is missing",
    ),
    (lambda a: {"teacher": {"x": {}}}, "no mapping from names to arrays"),
    (lambda a: [1, 2], "no mapping from names to arrays"),
  ],
)
def test_keys_and_shapes_that_do_not_fit_are_listed(tmp_path, change, message):
  path = tmp_path / "weights.pth"
  torch.save(change(samples.released_arrays(tmp_path)), path)
  with pytest.raises(errors.UserError, match=message) as caught:
    formats.read(str(path))
  assert str(path) in str(caught.value) and "\n" not in str(caught.value)


class Malicious:
  def __reduce__(self):
    return os.mkdir, ("executed",)


@pytest.mark.parametrize(
  "save", [torch.save, lambda x, f: pickle.dump(x, f.open("wb"))]
)
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
  tmp_path, monkeypatch, save
):
  monkeypatch.chdir(tmp_path)
  save({"cls_token": Malicious()}, tmp_path / "evil.pth")
  with pytest.raises(errors.UserError, match="might run code"):
    formats.read("evil.pth")
  assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
  "name, message",
  [
    ("notes.pth", "is not loaded: it is damaged"),
    ("notes.safetensors", "is no safetensors file"),
    ("notes.txt", r"ends in none of \.safetensors, \.pth"),
    ("absent.pth", "absent.pth does not exist"),
    ("", "holds neither checkpoints/ nor model.safetensors"),
  ],
)
def test_what_is_no_weights_is_named_in_one_line(tmp_path, name, message):
  for ending in ("pth", "safetensors", "txt"):
    (tmp_path / f"notes.{ending}").write_text("Buy milk, bread and some cheese.\n" * 9)
  with pytest.raises(errors.UserError, match=message) as caught:
    formats.read(str(tmp_path / name))
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["hello", "some notes", "\n"])
def test_a_text_in_place_of_a_pth_is_one_line_whatever_it_begins_with(tmp_path, text):
  (tmp_path / "text.pth").write_text(text)
  with pytest.raises(errors.UserError, match="is not loaded: it is damaged"):
    formats.read(str(tmp_path / "text.pth"))


POINTER = (
  f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 346329960\n"
)


@pytest.mark.parametrize("name", ["a.pth", "b.safetensors", "hf/model.safetensors"])
@pytest.mark.parametrize(
  "text, message",
  [
    (
      POINTER,
      "is a git-lfs pointer, not the weights; run `git lfs pull` in its folder",
    ),
    ("\n<!DOCTYPE html>\n<html>Sign in</html>", "is a web page.* download it again"),
    ("<HTML>404</HTML>", "is a web page.* download it again"),
    ("<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page"),
    ("", "is empty; copy or download it again"),
  ],
)
def test_what_downloads_leave_instead_of_weights_is_named(
  tmp_path, name, text, message
):
  (tmp_path / "hf").mkdir()
  (tmp_path / "hf" / "config.json").write_text("{}")
  (tmp_path / name).write_text(text)
  given = tmp_path / name.removesuffix("/model.safetensors")
  with pytest.raises(errors.UserError, match=f"{name} {message}") as caught:
    formats.read(str(given))
  assert "\n" not in str(caught.value)


def test_a_missing_shard_and_a_strange_json_are_named(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  index = tmp_path / "model.safetensors.index.json"
  index.write_text('{"weight_map": {"norm.bias": "model-00001-of-00002.safetensors"}}')
  with pytest.raises(errors.UserError, match=r"of-00002\.safetensors cannot be read"):
    formats.read(str(tmp_path))
  (tmp_path / "config.json").write_text("[]")
  with pytest.raises(errors.UserError, match=r"config\.json .* it is no JSON object"):
    formats.read(str(tmp_path))


def test_a_truncated_file_is_named(tmp_path):
  weights = samples.random_weights(samples.PLAIN | dict(pool="cls"))
  for name in ("released", "huggingface"):
    path = tmp_path / samples.NAMES[name]
    formats.write(weights, str(path), name)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(errors.UserError, match=samples.NAMES[name]):
      formats.read(str(path))


@pytest.mark.parametrize(
  "field, value", [("num_hidden_layers", 4), ("hidden_act", "relu"), ("mlp_ratio", 2)]
)
def test_a_config_that_asks_for_another_network_is_refused(tmp_path, field, value):
  folder = tmp_path / "hf"
  formats.write(
    samples.random_weights(samples.PLAIN | dict(pool="cls")), str(folder), "huggingface"
  )
  samples.change_json(folder / "config.json", **{field: value})
  with pytest.raises(errors.UserError, match=f"{field}={value!r}"):
    formats.read(str(folder))
