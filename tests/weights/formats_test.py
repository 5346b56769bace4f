"""Weights survive every format bit by bit, and what does not fit is named."""

import dataclasses
import functools
import itertools
import json
import os
import pickle
import re
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers

from dinojax import backbone, errors, vit
from dinojax.weights import formats, model

PLAIN = dict(
  patch_size=2, pos_grid=3, width=64, depth=3, heads=1, ffn="mlp", registers=0
)
GIANT = PLAIN | dict(ffn="swiglu", registers=4)
NAMES = {
  "dinojax": "folder",
  "released": "hub.pth",
  "teacher": "training.pth",
  "huggingface": "model.safetensors",
}


def random_weights(architecture, *, heads=()):
  rng = np.random.default_rng(0)
  tree = {"backbone": model.shapes(architecture)}
  for name, bottleneck in zip(heads, (8, 6), strict=False):
    tree[name] = model.head_shapes(
      hidden=16, bottleneck=bottleneck, prototypes=20, width=architecture["width"]
    )
  fill = lambda x: rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
  return model.Weights(architecture, jax.tree.map(fill, tree))


def assert_same(found, wanted):
  assert found.backbone == wanted.backbone
  jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)


@pytest.mark.parametrize("architecture", [PLAIN, GIANT], ids=["plain", "giant"])
@pytest.mark.parametrize("first, second", [*itertools.permutations(NAMES, 2)])
def test_any_format_to_any_other_and_back_is_bit_exact(
  tmp_path, architecture, first, second
):
  weights = random_weights({**architecture, "pool": "cls"})
  one, two = tmp_path / NAMES[first], tmp_path / NAMES[second]
  assert formats.write(weights, str(one), first) == []
  formats.write(formats.read(str(one)), str(two), second)
  assert_same(formats.read(str(two)), weights)


@pytest.mark.parametrize("name", ["dinojax", "teacher"])
def test_heads_go_along_where_the_format_has_them(tmp_path, name):
  weights = random_weights(PLAIN | dict(pool="cls"), heads=("dino_head", "ibot_head"))
  path = str(tmp_path / NAMES[name])
  assert formats.write(weights, path, name) == []
  assert_same(formats.read(path, parts=tuple(weights.params)), weights)
  assert set(formats.read(path).params) == {"backbone"}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_format_cannot_keep_is_said(tmp_path, name):
  weights = random_weights(PLAIN | dict(heads=4, pool="gap"), heads=("dino_head",))
  path = str(tmp_path / NAMES[name])
  lost = " ".join(formats.write(weights, path, name))
  keeps_architecture = name in ("dinojax", "huggingface")
  assert ("heads=4" in lost) == ("pool=gap" in lost) == (not keeps_architecture)
  assert ("dino_head" in lost) == (name not in ("dinojax", "teacher"))
  again = (
    formats.read(path)
    if keeps_architecture
    else formats.read(path, heads=4, pool="gap")
  )
  assert again.backbone == weights.backbone


SIZES = {"resize": 9, "crop": 4}


@pytest.mark.parametrize(
  "names",
  [
    ("dinojax", "huggingface", "folder"),
    ("huggingface", "folder", "dinojax"),
    ("folder", "dinojax", "huggingface"),
  ],
)
def test_resize_and_crop_of_a_run_travel_with_its_weights(tmp_path, names):
  wanted = dataclasses.replace(random_weights(PLAIN | dict(pool="gap")), sizes=SIZES)
  weights = wanted
  for name in names:
    path = str(tmp_path / NAMES.get(name, "hf"))
    assert formats.write(weights, path, NAMES.get(name) and name or "huggingface") == []
    weights = formats.read(path)
    assert weights.sizes == SIZES
    assert backbone.load(path).sizes == SIZES
  assert_same(weights, wanted)


def test_a_pth_tells_sizes_that_are_not_the_usual_ones(tmp_path):
  weights = random_weights(PLAIN | dict(pool="cls"))
  lost = [
    formats.write(dataclasses.replace(weights, sizes=sizes), path, "released")
    for sizes, path in (
      (SIZES, str(tmp_path / "a.pth")),
      ({"resize": 7, "crop": 6}, str(tmp_path / "b.pth")),
    )
  ]
  assert lost == [["the sizes at which images are rated: give --resize=9 --crop=4"], []]


def test_transformers_sees_images_at_the_sizes_of_the_run(tmp_path):
  weights = random_weights(PLAIN | dict(pool="cls"))
  for name, sizes, wanted in (("run", SIZES, (9, 4)), ("file", {}, (7, 6))):
    folder = tmp_path / name
    formats.write(dataclasses.replace(weights, sizes=sizes), str(folder), "huggingface")
    processor = transformers.BitImageProcessor.from_pretrained(folder)
    assert processor.size["shortest_edge"] == wanted[0]
    assert processor.crop_size == {"height": wanted[1], "width": wanted[1]}


@pytest.fixture
def reference_folder(tmp_path):
  """A model's folder as transformers saves it, with the images of released models."""
  make_reference().save_pretrained(tmp_path / "reference")
  transformers.BitImageProcessor(
    size={"shortest_edge": 256},
    crop_size={"height": 224, "width": 224},
    image_mean=list(vit.IMAGENET_MEAN),
    image_std=list(vit.IMAGENET_STD),
  ).save_pretrained(tmp_path / "reference")
  return tmp_path / "reference"


def change_json(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_transformers_says_of_images_is_followed(reference_folder):
  assert formats.read(str(reference_folder)).sizes == {"resize": 256, "crop": 224}
  path = reference_folder / "preprocessor_config.json"
  change_json(path, size=64, crop_size=32)  # as older ones are
  assert formats.read(str(reference_folder)).sizes == {"resize": 64, "crop": 32}
  path.unlink()
  assert formats.read(str(reference_folder)).sizes == {}


@pytest.mark.parametrize(
  "changes",
  [
    dict(do_center_crop=False),
    dict(do_resize=False),
    dict(size={"height": 224, "width": 224}),
    dict(crop_size={"height": 224, "width": 112}),
    dict(crop_size={"height": 223, "width": 223}),
    dict(crop_size=None),
    dict(size={"shortest_edge": 200}),
  ],
)
def test_other_ways_to_fit_images_are_told_and_not_followed(
  reference_folder, caplog, changes
):
  change_json(reference_folder / "preprocessor_config.json", **changes)
  assert formats.read(str(reference_folder)).sizes == {}
  (record,) = caplog.records
  said = record.getMessage()
  assert "preprocessor_config.json" in said and "--resize and --crop" in said
  (name, value), *_ = changes.items()
  assert f"{name}={value}" in said and "\n" not in said


def test_another_resampling_is_told(reference_folder, caplog):
  change_json(reference_folder / "preprocessor_config.json", resample=2)
  assert formats.read(str(reference_folder)).sizes == {"resize": 256, "crop": 224}
  assert "has resample=2; images here are resized bicubically" in caplog.text


@pytest.mark.parametrize(
  "changes",
  [
    dict(image_mean=[0.5, 0.5, 0.5]),
    dict(image_std=[0.229, 0.224]),
    dict(image_mean=None),
    dict(do_normalize=False),
    dict(do_rescale=False),
    dict(rescale_factor=1),
  ],
)
def test_other_values_of_pixels_are_refused(reference_folder, changes):
  change_json(reference_folder / "preprocessor_config.json", **changes)
  (name, value), *_ = changes.items()
  wanted = re.escape(
    f"preprocessor_config.json has {name}={value}, and images here get"
  )
  with pytest.raises(errors.UserError, match=wanted):
    formats.read(str(reference_folder))
  assert formats.read(str(reference_folder / "model.safetensors")).sizes == {}


@functools.cache
def make_reference():
  config = transformers.Dinov2WithRegistersConfig(
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=1,
    image_size=6,
    patch_size=2,
    use_swiglu_ffn=True,
    num_register_tokens=4,
  )
  network = transformers.Dinov2WithRegistersModel(config).eval()
  generator = torch.Generator().manual_seed(0)
  for weights in network.parameters():
    weights.data = 0.3 * torch.randn(weights.shape, generator=generator)
  return network


def released_arrays(folder):
  """A hub checkpoint, from what transformers saves by the published table of names."""
  make_reference().save_pretrained(folder / "reference")
  theirs = safetensors.torch.load_file(folder / "reference" / "model.safetensors")
  arrays = {}
  for i in range(3):
    at = f"encoder.layer.{i}.attention.attention"
    for kind in ("weight", "bias"):
      rows = [theirs.pop(f"{at}.{x}.{kind}") for x in ("query", "key", "value")]
      arrays[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(rows)
  table = {
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^embeddings\.": "",
    r"^encoder\.layer\.": "blocks.",
    r"attention\.output\.dense": "attn.proj",
    r"layer_scale(\d)\.lambda1": r"ls\1.gamma",
    r"weights_in": "w12",
    r"weights_out": "w3",
    r"^layernorm": "norm",
  }
  for name, weights in theirs.items():
    for pattern, replacement in table.items():
      name = re.sub(pattern, replacement, name)
    arrays[name] = weights
  return arrays


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_a_hub_checkpoint_and_a_chunked_teacher_compute_what_transformers_does(
  tmp_path, chunk
):
  arrays = released_arrays(tmp_path)
  path = tmp_path / "weights.pth"
  if chunk:
    arrays = {
      "backbone."
      + re.sub(
        r"^blocks\.(\d)", lambda m: f"blocks.{int(m[1]) // chunk}.{m[1]}", name
      ): x
      for name, x in arrays.items()
    }
    arrays = {"teacher": arrays}
  torch.save(arrays, path)
  images = np.random.default_rng(0).integers(256, size=(2, 6, 6, 3), dtype=np.uint8)
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  pixels = torch.tensor((images / 255 - mean) / std).permute(0, 3, 1, 2).float()
  with torch.no_grad():
    wanted = make_reference()(pixels).last_hidden_state.numpy()
  found = backbone.load(str(path))(images)
  np.testing.assert_allclose(found.cls, wanted[:, 0], atol=2e-5)
  np.testing.assert_allclose(found.patches, wanted[:, 5:], atol=2e-5)


def test_a_folder_of_ours_opens_in_transformers_and_computes_the_same(tmp_path):
  weights = random_weights(GIANT | dict(pool="cls"))
  formats.write(weights, str(tmp_path / "hf"), "huggingface")
  network = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
  images = np.random.default_rng(0).integers(256, size=(2, 6, 6, 3), dtype=np.uint8)
  processor = transformers.BitImageProcessor.from_pretrained(tmp_path / "hf")
  mean, std = np.array(processor.image_mean), np.array(processor.image_std)
  pixels = torch.tensor((images / 255 - mean) / std).permute(0, 3, 1, 2).float()
  with torch.no_grad():
    wanted = network(pixels).last_hidden_state.numpy()
  found = backbone.load(str(tmp_path / "hf"))(images)
  scale = np.abs(wanted).max()
  np.testing.assert_allclose(found.cls / scale, wanted[:, 0] / scale, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_as_float32_without_pytorch(tmp_path, dtype):
  arrays = {k: x.numpy().astype(dtype) for k, x in released_arrays(tmp_path).items()}
  path = tmp_path / "half.safetensors"
  safetensors.numpy.save_file(arrays, path)
  script = (
    "import sys\n"
    "from dinojax.weights import formats\n"
    f"norm = formats.read({str(path)!r}).params['backbone']['norm']['scale']\n"
    "assert norm.dtype == 'float32' and 'torch' not in sys.modules\n"
    "print(norm.tolist())"
  )
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, env=environment
  )
  assert done.returncode == 0, done.stderr
  np.testing.assert_array_equal(
    json.loads(done.stdout), arrays["norm.weight"].astype(np.float32)
  )


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
  torch.save(change(released_arrays(tmp_path)), path)
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
  with pytest.raises(
    errors.UserError, match="00001-of-00002.safetensors cannot be read"
  ):
    formats.read(str(tmp_path))
  (tmp_path / "config.json").write_text("[]")
  with pytest.raises(errors.UserError, match="config.json .* it is no JSON object"):
    formats.read(str(tmp_path))


def test_a_truncated_file_is_named(tmp_path):
  weights = random_weights(PLAIN | dict(pool="cls"))
  for name in ("released", "huggingface"):
    path = tmp_path / NAMES[name]
    formats.write(weights, str(path), name)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(errors.UserError, match=NAMES[name]):
      formats.read(str(path))


@pytest.mark.parametrize(
  "field, value", [("num_hidden_layers", 4), ("hidden_act", "relu"), ("mlp_ratio", 2)]
)
def test_a_config_that_asks_for_another_network_is_refused(tmp_path, field, value):
  folder = tmp_path / "hf"
  formats.write(random_weights(PLAIN | dict(pool="cls")), str(folder), "huggingface")
  change_json(folder / "config.json", **{field: value})
  with pytest.raises(errors.UserError, match=f"{field}={value!r}"):
    formats.read(str(folder))


def test_heads_that_contradict_the_file_or_do_not_divide_are_refused(tmp_path):
  weights = random_weights(PLAIN | dict(pool="cls"))
  formats.write(weights, str(tmp_path / "folder"), "dinojax")
  with pytest.raises(errors.UserError, match="1 attention heads and not 2"):
    formats.read(str(tmp_path / "folder"), heads=2)
  formats.write(weights, str(tmp_path / "hub.pth"), "released")
  with pytest.raises(errors.UserError, match="heads=5 must divide the 64"):
    formats.read(str(tmp_path / "hub.pth"), heads=5)
  narrow = random_weights(PLAIN | dict(width=48, heads=3, pool="cls"))
  formats.write(narrow, str(tmp_path / "narrow.pth"), "released")
  with pytest.raises(errors.UserError, match="give --heads"):
    formats.read(str(tmp_path / "narrow.pth"))
  assert formats.read(str(tmp_path / "narrow.pth"), heads=3).backbone["heads"] == 3


def test_what_exists_is_not_overwritten(tmp_path):
  weights = random_weights(PLAIN | dict(pool="cls"))
  for name, file in NAMES.items():
    formats.write(weights, str(tmp_path / file), name)
    with pytest.raises(errors.UserError, match="exists; remove it"):
      formats.write(weights, str(tmp_path / file), name)
  assert not list(tmp_path.glob(".*"))  # nothing half-written stays


@pytest.mark.parametrize("architecture", [PLAIN, GIANT], ids=["plain", "giant"])
def test_resized_positions_are_what_the_network_computes_for_that_grid(architecture):
  weights = random_weights({**architecture, "pool": "cls"})
  resized = model.with_pos_grid(weights, 5)
  images = np.random.default_rng(0).normal(size=(2, 10, 10, 3)).astype(np.float32)
  seen = [
    model.module(w.backbone, dtype="float32", attention="xla").apply(
      {"params": w.params["backbone"]}, (images,), (None,)
    )[0]
    for w in (weights, resized)
  ]
  np.testing.assert_allclose(seen[0].cls, seen[1].cls, atol=1e-6)
  np.testing.assert_allclose(seen[0].patches, seen[1].patches, atol=1e-6)
  assert resized.params["backbone"]["pos_embed"].shape == (1, 26, 64)


def test_the_command_converts_and_tells_a_mistake_in_one_line(tmp_path):
  formats.write(
    random_weights(PLAIN | dict(pool="gap")), str(tmp_path / "a"), "dinojax"
  )

  def run(*arguments):
    return subprocess.run(
      [sys.executable, "-m", "dinojax.convert", *arguments],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      env={**os.environ, "PYTHONPATH": os.getcwd()},
    )

  done = run("a", "b.pth", "--pos_grid=4")
  assert done.returncode == 0, done.stderr
  assert "pool=gap" in done.stderr and "written to b.pth" in done.stderr
  assert formats.read(str(tmp_path / "b.pth")).backbone["pos_grid"] == 4
  for arguments, message in (
    (("a", "b.pth"), "dinojax: b.pth exists; remove it, or choose another name"),
    (("a",), "dinojax: DST missing; see --help"),
    (("a", "c", "d"), "dinojax: 'd' is no option; options start with --"),
    (("b.pth", "c", "--step=3"), "dinojax: b.pth is no run, and --step=3 asks for one"),
  ):
    failed = run(*arguments)
    assert failed.returncode == 1 and failed.stderr.strip() == message
