"""The Python API: three lines from weights to features, exported or not."""

import dataclasses
import functools
import re

import dino_oracle
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import torch

from dinojax import backbone, errors, export, sharding
from dinojax.networks import vit
from dinojax.weights import formats, model

ARCHITECTURE = model.DEFAULTS | dict(
  patch_size=2, pos_grid=4, width=32, depth=5, heads=2, ffn="swiglu", registers=4
)


def random_backbone(pool="gap", **changes):
  rng = np.random.default_rng(0)
  architecture = {**ARCHITECTURE, "pool": pool, **changes}
  fill = lambda x: rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
  params = jax.tree.map(fill, model.shapes(architecture))
  return model.Weights(architecture, {"backbone": params})


@functools.cache
def made():
  """A backbone of noise, which is compiled once for each batch."""
  return backbone.of_weights(random_backbone())


def images_of(count, side=8):
  shape = (count, side, side, 3)
  return np.random.default_rng(1).integers(256, size=shape, dtype=np.uint8)


image_columns = jax.jit(backbone.image_columns, static_argnums=(0, 3))


def test_three_lines_give_what_the_network_computes(tmp_path):
  formats.write(random_backbone(), str(tmp_path / "weights"), "dinojax")
  loaded = backbone.load(str(tmp_path / "weights"))
  images = images_of(3)
  seen = loaded(images)
  params = random_backbone().params["backbone"]
  mean, std = np.float32(vit.IMAGENET_MEAN), np.float32(vit.IMAGENET_STD)
  crops = [(images / np.float32(255) - mean) / std]
  (wanted,) = dino_oracle.apply(loaded.module, params, crops, [None])
  for name in ("image", "cls", "patches"):
    np.testing.assert_allclose(getattr(seen, name), getattr(wanted, name), atol=1e-5)
  np.testing.assert_allclose(seen.image, seen.patches.mean(1), atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
  ("name", "kind", "parameter"),
  [
    ("w", "dinojax", "backbone.cls_token"),
    ("w.pth", "released", "cls_token"),
    ("t.pth", "teacher", "teacher.backbone.cls_token"),
    ("w.safetensors", "huggingface", "embeddings.cls_token"),
  ],
)
def test_weights_that_are_not_finite_are_refused_by_name(
  tmp_path, name, kind, parameter, value
):
  weights = random_backbone()
  weights.params["backbone"]["cls_token"][0, 0, :2] = value
  formats.write(weights, str(tmp_path / name), kind)
  with pytest.raises(errors.UserError) as raised:
    backbone.load(str(tmp_path / name), heads=None if kind == "dinojax" else 2)
  assert str(raised.value).startswith(
    f"{tmp_path / name}: {parameter} has 2 values that are not finite (NaN or infinite)"
  )


def test_a_batch_is_compiled_once():
  loaded = made()
  loaded(images_of(3))
  with jax.log_compiles(), jax.check_tracer_leaks(False):
    before = backbone._apply._cache_size()
    loaded(images_of(3))
    assert backbone._apply._cache_size() == before


@pytest.mark.parametrize("kind, block", [("gap", -1), ("cls", -3), ("gap", -4)])
def test_a_column_is_the_feature_of_the_network_cut_off_after_that_block(kind, block):
  weights = random_backbone(pool=kind)
  loaded, images = backbone.of_weights(weights), images_of(3)
  wanted = (("cls", -2), (kind, block))
  found = image_columns(loaded.module, loaded.params, images, wanted)
  depth = 5 + block + 1
  cut = dataclasses.replace(loaded.module, depth=depth)
  params = dict(loaded.params)
  params["blocks"] = jax.tree.map(lambda x: x[:depth], params["blocks"])
  expected = jax.jit(backbone.apply, static_argnums=0)(cut, params, images).image
  np.testing.assert_allclose(found[:, 32:], expected, atol=1e-5)


def test_image_features_join_kinds_and_blocks_in_their_order():
  loaded, images = made(), images_of(3)
  columns = backbone.columns("cls+gap", 2)
  joined = image_columns(loaded.module, loaded.params, images, columns)
  order = (("cls", -2), ("cls", -1), ("gap", -2), ("gap", -1))
  assert columns == order
  assert joined.shape == (3, 4 * 32)
  np.testing.assert_allclose(joined[:, 32:64], loaded(images).cls, atol=1e-5)
  np.testing.assert_allclose(joined[:, 96:], loaded(images).image, atol=1e-5)


def test_features_are_the_same_on_a_mesh(tmp_path):
  formats.write(random_backbone(), str(tmp_path / "weights"), "dinojax")
  mesh, images = sharding.make_mesh(data=2, fsdp=4), images_of(8)
  with jax.set_mesh(mesh):
    split = backbone.load(str(tmp_path / "weights"), mesh=mesh)
    found = split(images)
  wanted = made()(images)
  np.testing.assert_allclose(found.patches, wanted.patches, atol=2e-5)


@pytest.mark.parametrize(
  "images, message",
  [
    (list(images_of(2)), "images are a list; give an array: np.asarray(images)"),
    (torch.tensor(images_of(2)), "are a Tensor; give an array: np.asarray(images)"),
    (images_of(2) / 255, "are float64; give uint8, 0 to 255"),
    (jnp.asarray(images_of(2) / 255), "are float32; give uint8, 0 to 255"),
    (images_of(2)[0], "[8, 8, 3]; give a batch [B, H, W, 3]: images[None] for"),
    (images_of(2)[None], "are [1, 2, 8, 8, 3]; give a batch [B, H, W, 3]"),
    (images_of(2)[:0], "are [0, 8, 8, 3], a batch of none; give at least one"),
    (images_of(2)[..., :1], "of 1 channels; give RGB [B, H, W, 3]"),
    (images_of(2)[..., [0, 1, 2, 2]], "of 4 channels; give RGB [B, H, W, 3]"),
    (
      images_of(2).transpose(0, 3, 1, 2),
      "give RGB [B, H, W, 3]: images.transpose(0, 2",
    ),
    (
      images_of(2, 9),
      "are 9 x 9 pixels; give multiples of the patch size, 2: try 8 x 8",
    ),
    (images_of(2)[:, :, :7], "are 8 x 7 pixels; give multiples of .* try 8 x 8"),
    (images_of(2)[:, :0], "are 0 x 8 pixels; give multiples of .* try 2 x 8"),
  ],
)
def test_each_way_in_which_images_are_wrong_is_told_with_the_way_out(images, message):
  with pytest.raises(errors.UserError) as caught:
    made()(images)
  pattern = ".*".join(map(re.escape, message.split(".*")))
  assert re.search(pattern, str(caught.value)), caught.value
  assert "\n" not in str(caught.value)


def test_images_of_either_library_and_of_any_fitting_size_are_taken():
  loaded = made()
  images = images_of(1, 10)[:, :6]
  assert loaded(images).patches.shape == (1, 15, 32)
  np.testing.assert_array_equal(loaded(jnp.asarray(images)).cls, loaded(images).cls)


def test_an_exported_program_takes_any_batch_and_needs_no_weights():
  loaded = backbone.of_weights(random_backbone(depth=2))
  program = jax.export.deserialize(
    export.stablehlo(export.of_backbone(loaded), 8).serialize()
  )
  assert program.platforms == ("cpu", "cuda", "tpu")
  for count in (1, 5):
    seen = loaded(images_of(count))
    for found, wanted in zip(
      program.call(images_of(count)), (seen.image, seen.cls, seen.patches), strict=True
    ):
      np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_an_onnx_file_computes_the_same_on_another_runtime(tmp_path, capfd, caplog):
  # Of cls, so that one array has two names, and rotary; the program above is of gap and
  # learned positions.
  loaded = backbone.of_weights(random_backbone("cls", positions="rope", depth=2))
  export.onnx(export.of_backbone(loaded), 12, tmp_path / "model.onnx")
  session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
  assert capfd.readouterr() == ("", "") and not caplog.records
  assert [given.name for given in session.get_inputs()] == ["images"]
  names = [taken.name for taken in session.get_outputs()]
  assert names == ["image", "cls", "patches"]
  for count in (1, 5):
    images = images_of(count, 12)
    seen = loaded(images)
    for found, wanted in zip(
      session.run(names, {"images": images}),
      (seen.image, seen.cls, seen.patches),
      strict=True,
    ):
      np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_size_that_is_no_multiple_of_the_patch_is_refused():
  program = export.of_backbone(made())
  with pytest.raises(errors.UserError, match=r"size=9 must be a multiple .* try 8"):
    export.stablehlo(program, 9)
