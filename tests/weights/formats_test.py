"""Weights survive every format bit by bit, and what does not fit is named."""

import itertools
import os
import re
import resource
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers

from dinojax import backbone, errors
from dinojax.weights import formats, model
from tests.weights import samples


@pytest.mark.parametrize(
  "architecture", [samples.PLAIN, samples.GIANT], ids=["plain", "giant"]
)
@pytest.mark.parametrize("first, second", [*itertools.permutations(samples.NAMES, 2)])
def test_any_format_to_any_other_and_back_is_bit_exact(
  tmp_path, architecture, first, second
):
  weights = samples.random_weights({**architecture, "pool": "cls"})
  one, two = tmp_path / samples.NAMES[first], tmp_path / samples.NAMES[second]
  assert formats.write(weights, str(one), first) == []
  formats.write(formats.read(str(one)), str(two), second)
  samples.assert_same(formats.read(str(two)), weights)


@pytest.mark.parametrize("name", ["dinojax", "teacher"])
def test_heads_go_along_where_the_format_has_them(tmp_path, name):
  weights = samples.random_weights(
    samples.PLAIN | dict(pool="cls"), heads=("dino_head", "ibot_head")
  )
  path = str(tmp_path / samples.NAMES[name])
  assert formats.write(weights, path, name) == []
  samples.assert_same(formats.read(path, parts=tuple(weights.params)), weights)
  assert set(formats.read(path).params) == {"backbone"}


@pytest.mark.parametrize("name", samples.NAMES)
def test_what_a_format_cannot_keep_is_said(tmp_path, name):
  weights = samples.random_weights(
    samples.PLAIN | dict(heads=4, pool="gap"), heads=("dino_head",)
  )
  path = str(tmp_path / samples.NAMES[name])
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


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_a_hub_checkpoint_and_a_chunked_teacher_compute_what_transformers_does(
  tmp_path, chunk
):
  arrays = samples.released_arrays(tmp_path)
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
    wanted = samples.make_reference()(pixels).last_hidden_state.numpy()
  found = backbone.load(str(path))(images)
  np.testing.assert_allclose(found.cls, wanted[:, 0], atol=2e-5)
  np.testing.assert_allclose(found.patches, wanted[:, 5:], atol=2e-5)


def test_a_folder_of_ours_opens_in_transformers_and_computes_the_same(tmp_path):
  weights = samples.random_weights(samples.GIANT | dict(pool="cls"))
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


@pytest.mark.process
def test_half_precision_is_read_as_float32_without_pytorch(tmp_path):
  arrays = {k: x.numpy() for k, x in samples.released_arrays(tmp_path).items()}
  script = "import sys\nfrom dinojax.weights import formats\n"
  for dtype in (np.float16, ml_dtypes.bfloat16):
    path = tmp_path / f"{np.dtype(dtype).name}.safetensors"
    halves = {k: x.astype(dtype) for k, x in arrays.items()}
    safetensors.numpy.save_file(halves, path)
    script += (
      f"norm = formats.read({str(path)!r}).params['backbone']['norm']['scale']\n"
      f"assert norm.dtype == 'float32'\n"
      f"assert norm.tolist() == {halves['norm.weight'].tolist()}\n"
    )
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", f"{script}assert 'torch' not in sys.modules"],
    capture_output=True,
    text=True,
    env=environment,
  )
  assert done.returncode == 0, done.stderr


def test_heads_that_contradict_the_file_or_do_not_divide_are_refused(tmp_path):
  weights = samples.random_weights(samples.PLAIN | dict(pool="cls"))
  formats.write(weights, str(tmp_path / "folder"), "dinojax")
  with pytest.raises(errors.UserError, match="1 attention heads and not 2"):
    formats.read(str(tmp_path / "folder"), heads=2)
  formats.write(weights, str(tmp_path / "hub.pth"), "released")
  with pytest.raises(errors.UserError, match="heads=5 must divide the 64"):
    formats.read(str(tmp_path / "hub.pth"), heads=5)
  narrow = samples.random_weights(samples.PLAIN | dict(width=48, heads=3, pool="cls"))
  formats.write(narrow, str(tmp_path / "narrow.pth"), "released")
  with pytest.raises(errors.UserError, match="give --heads"):
    formats.read(str(tmp_path / "narrow.pth"))
  assert formats.read(str(tmp_path / "narrow.pth"), heads=3).backbone["heads"] == 3


def test_what_exists_is_not_overwritten(tmp_path):
  weights = samples.random_weights(samples.PLAIN | dict(pool="cls"))
  for name, file in samples.NAMES.items():
    formats.write(weights, str(tmp_path / file), name)
    with pytest.raises(errors.UserError, match="exists; remove it"):
      formats.write(weights, str(tmp_path / file), name)
  assert not list(tmp_path.glob(".*"))  # nothing half-written stays


@pytest.mark.parametrize("name", samples.NAMES)
def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, name):
  weights = samples.random_weights(samples.PLAIN | dict(pool="cls"))
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # a disk that is full
  try:
    with pytest.raises(errors.UserError, match="cannot be written") as caught:
      formats.write(weights, str(tmp_path / samples.NAMES[name]), name)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert "\n" not in str(caught.value)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "architecture", [samples.PLAIN, samples.GIANT], ids=["plain", "giant"]
)
def test_resized_position_embeddings_are_what_the_network_computes_for_that_grid(
  architecture,
):
  weights = samples.random_weights({**architecture, "pool": "cls"})
  resized = model.with_pos_grid(weights, 5)
  images = np.random.default_rng(0).normal(size=(2, 10, 10, 3)).astype(np.float32)
  seen = [samples.outputs(w, images) for w in (weights, resized)]
  np.testing.assert_allclose(seen[0].cls, seen[1].cls, atol=1e-6)
  np.testing.assert_allclose(seen[0].patches, seen[1].patches, atol=1e-6)
  assert resized.params["backbone"]["pos_embed"].shape == (1, 26, 64)


def test_the_ending_of_a_name_is_the_format_and_an_unknown_one_is_refused():
  names = ("a.pth", "a.pt", "a.safetensors", "folder", "1.0.0")
  formats_of = ("released", "released", "huggingface", "dinojax", "dinojax")
  assert tuple(map(formats.guess, names)) == formats_of
  for name in ("a.bin", "a.safetensor", "a.ckpt"):
    with pytest.raises(errors.UserError, match=rf"{name}: no format has the ending"):
      formats.guess(name)


def test_programs_and_unknown_features_are_refused_by_name(tmp_path):
  program = tmp_path / "x.onnx"
  program.write_bytes(b"x")
  with pytest.raises(errors.UserError, match=r"x\.onnx is a program, to be run"):
    formats.read(str(program))
  with pytest.raises(errors.UserError, match='pool="mean" must be "cls" or "gap"'):
    formats.read(str(program), pool="mean")


def test_a_file_is_written_by_one_process_at_a_time(tmp_path):
  where = tmp_path / "w.pth"
  with formats.moved_when_complete(where) as new:
    new.touch()
    with (
      pytest.raises(errors.UserError, match=r"w\.pth is in use by process \d+ on"),
      formats.moved_when_complete(where),
    ):
      pass
  assert list(tmp_path.iterdir()) == [where]
