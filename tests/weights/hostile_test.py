"""Hostile files of weights are one line, before they take memory or time."""

import json
import os
import shutil
import struct
import zipfile

import pytest
import safetensors.numpy
import torch

from dinojax import errors
from dinojax.weights import formats, state_dicts
from tests.weights import samples

DEEP = "[" * 100_000 + "]" * 100_000
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
  """A Hugging Face folder with all of its files."""
  folder = tmp_path_factory.mktemp("weights") / "hf"
  weights = samples.random_weights(samples.PLAIN | dict(pool="cls"))
  formats.write(weights, str(folder), "huggingface")
  return folder


@pytest.fixture(scope="module")
def released():
  weights = samples.random_weights(samples.PLAIN | dict(pool="cls"))
  arrays = state_dicts.write(weights, "released")
  return {name: torch.tensor(x) for name, x in arrays.items()}


def refusal(path):
  """The message with which weights are refused, one line."""
  with pytest.raises(errors.UserError) as caught:
    formats.read(str(path))
  assert str(caught.value).isprintable()
  return str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", INDEX])
@pytest.mark.parametrize(
  "text, reason",
  [
    (DEEP, "nested too deep"),
    ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deep"),
    ("[]", "it is no JSON object"),
    ("null", "it is no JSON object"),
    ('"text"', "it is no JSON object"),
    ("1" * 5000, "digits"),
    ("{", "double quotes"),
    (b"\xff\xfe", "utf-8"),
  ],
)
def test_any_json_beside_weights_is_read_or_named(
  tmp_path, model_folder, name, text, reason
):
  folder = shutil.copytree(model_folder, tmp_path / "hf")
  if name == INDEX:
    os.remove(folder / "model.safetensors")
  (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  message = refusal(folder)
  assert f"{folder / name} cannot be read: " in message and reason in message


@pytest.mark.parametrize(
  "value", ["six", "six\n", 0, -1, 1.5, True, [6], {"a": 6}, 10**30, float("nan")]
)
def test_a_number_of_heads_that_is_none_is_named(tmp_path, model_folder, value):
  folder = shutil.copytree(model_folder, tmp_path / "hf")
  samples.change_json(folder / "config.json", num_attention_heads=value)
  assert "heads=" in refusal(folder)


@pytest.mark.parametrize(
  "index, reason",
  [
    ({}, "weight_map=None; it must name the file of each array"),
    ({"weight_map": {}}, "weight_map={}; it must name"),
    ({"weight_map": ["model.safetensors"]}, "weight_map=['model.safetensors']"),
    ({"weight_map": "x" * 9999}, "weight_map='xxx"),
    ({"weight_map": {"a": 1}}, "has 1 as the file of 'a'"),
    ({"weight_map": {"a": None}}, "has None as the file of 'a'"),
    ({"weight_map": {"a": "../hf/part"}}, "has '../hf/part' as the file of 'a'"),
    ({"weight_map": {"a": "/etc/passwd"}}, "has '/etc/passwd' as the file of 'a'"),
    ({"weight_map": {"a": "absent"}}, "absent cannot be read"),
    ({"weight_map": {"a\n": "part"}}, r"part lacks 'a\n', which " + INDEX),
  ],
)
def test_an_index_that_names_no_files_of_its_folder_is_refused(
  tmp_path, model_folder, index, reason
):
  folder = shutil.copytree(model_folder, tmp_path / "hf")
  os.rename(folder / "model.safetensors", folder / "part")
  (folder / INDEX).write_text(json.dumps(index))
  message = refusal(folder)
  assert reason in message and len(message) < 500


def test_an_index_that_names_every_array_is_followed(tmp_path, model_folder):
  folder = shutil.copytree(model_folder, tmp_path / "hf")
  arrays = safetensors.numpy.load_file(folder / "model.safetensors")
  os.remove(folder / "model.safetensors")
  names = {name: f"{i % 2}.safetensors" for i, name in enumerate(arrays)}
  for file in ("0.safetensors", "1.safetensors"):
    part = {name: x for name, x in arrays.items() if names[name] == file}
    safetensors.numpy.save_file(part, folder / file)
  (folder / INDEX).write_text(json.dumps({"weight_map": names}))
  samples.assert_same(formats.read(str(folder)), formats.read(str(model_folder)))


@pytest.mark.parametrize(
  "metadata, reason",
  [
    ({"dinojax_heads": "six"}, "dinojax_heads='six'; it must be a whole number"),
    ({"dinojax_pool": "mean"}, "pool='mean'; it must be cls or gap"),
    ({"dinojax_preprocessor_config": DEEP}, "in its metadata cannot be read: nested"),
  ],
)
def test_metadata_of_a_safetensors_is_read_or_named(
  tmp_path, model_folder, metadata, reason
):
  arrays = safetensors.numpy.load_file(model_folder / "model.safetensors")
  path = tmp_path / "a.safetensors"
  safetensors.numpy.save_file(arrays, path, metadata)
  assert reason in refusal(path)


@pytest.mark.parametrize(
  "header, reason",
  [
    (struct.pack("<Q", 2**60) + b"{}", "header too large"),
    (struct.pack("<Q", len(DEEP)) + DEEP.encode(), "is no safetensors file"),
  ],
)
def test_a_header_of_a_safetensors_that_is_none_is_refused(tmp_path, header, reason):
  path = tmp_path / "a.safetensors"
  path.write_bytes(header)
  assert reason in refusal(path)


def test_files_larger_than_the_machines_memory_are_refused_unread(
  tmp_path, monkeypatch, model_folder
):
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  sparse = tmp_path / "sparse.pth"
  sparse.touch()
  os.truncate(sparse, memory + 1)
  assert "GB of memory; use a larger machine" in refusal(sparse)
  config = shutil.copytree(model_folder, tmp_path / "hf") / "config.json"
  os.truncate(config, memory + 1)
  assert "config.json cannot be read: it must be a file of at most" in refusal(
    config.parent
  )
  monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 9999}.get)
  assert "GB of memory" in refusal(model_folder)


def test_a_pth_that_would_unpack_to_more_than_it_is_is_refused(tmp_path, released):
  torch.save(released, tmp_path / "stored.pth")
  with (
    zipfile.ZipFile(tmp_path / "stored.pth") as stored,
    zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
  ):
    for name in stored.namelist():
      bomb.writestr(name, stored.read(name))
    bomb.writestr("stored/data/999", bytes(10**7))
  assert "would unpack to 10," in refusal(tmp_path / "bomb.pth")


def loop(arrays):
  arrays["self"] = arrays
  return arrays


def nested(arrays):
  for _ in range(100):
    arrays = {"inner": arrays}
  return arrays


@pytest.mark.parametrize(
  "change, reason",
  [
    (
      lambda a: a | {"cls_token": torch.zeros(1).expand(1, 1, 2**45)},
      "width=35184372088832",
    ),
    (
      lambda a: a | {"blocks.99999999.norm1.bias": torch.zeros(64)},
      "before blocks.99999",
    ),
    (lambda a: a | {f"blocks.{'9' * 5000}.x": torch.zeros(1)}, "of its blocks none"),
    (
      lambda a: a | {"cls_token": torch.tensor(1.0)},
      "cls_token is []; it must have 3 axes",
    ),
    (lambda a: a | {"pos_embed": torch.zeros(1, 0, 64)}, "pos_embed is [1, 0, 64]"),
    (lambda a: a | {"blocks.0\x1b[2J\n": torch.zeros(1)}, r"blocks.0\x1b[2J\n is left"),
    (
      lambda a: a | {"norm.bias": torch.zeros(64, dtype=torch.int8)},
      "norm.bias is int8",
    ),
    (
      lambda a: a | {"norm.bias": torch.zeros(64).to_sparse()},
      "norm.bias cannot be read",
    ),
    (
      lambda a: a | {"norm.bias": torch.zeros(64, device="meta")},
      "norm.bias cannot be",
    ),
    (
      lambda a: a | {"norm.bias": torch.full([64], 1e300, dtype=torch.double)},
      "not finite",
    ),
    (nested, "no mapping from names to arrays"),
    (lambda a: loop({"x": a["norm.bias"]}), "no DINOv2 backbone"),
  ],
)
def test_arrays_that_are_no_backbones_are_one_line(tmp_path, released, change, reason):
  torch.save(change(dict(released)), tmp_path / "a.pth")
  assert reason in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "hf/config.json"])
def test_a_pipe_in_place_of_a_file_is_not_opened(tmp_path, model_folder, name):
  shutil.copytree(model_folder, tmp_path / "hf")
  (tmp_path / name).unlink(missing_ok=True)
  os.mkfifo(tmp_path / name)
  path = tmp_path / "hf" if name.startswith("hf") else tmp_path / name
  assert name in refusal(path)
