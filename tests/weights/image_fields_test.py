"""Weights of other channels than RGB: stored, read, and made of RGB weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax import errors, export
from dinojax.networks import vit
from dinojax.weights import formats, image_fields, model
from tests.weights import samples

RGB = (3, 2, 1)
MANY = "1 to 16 numbers, as many of mean as of std, each"


def fields(channels=13, dtype="uint16", most=4_095.0):
  own = dict(mean=(0.25,) * channels, std=(0.125,) * channels)
  return own | {"image_dtype": dtype, "max_value": most}


def tokens(weights, images):
  """Patch tokens of images of the network's own layout."""
  net = model.module(weights.backbone, dtype="float32", attention="xla")
  return samples.outputs(weights, jax.jit(net.normalize)(images)).patches


@pytest.fixture(scope="module")
def rgb():
  return samples.random_weights(samples.PLAIN | dict(pool="cls"))


def test_images_are_scaled_by_what_means_1_and_normalised_in_float32():
  rng = np.random.default_rng(0)
  mean, std = (0.1, 0.2), (0.3, 0.4)
  for dtype, most, one in (
    ("uint8", 0.0, 255),
    ("uint16", 0.0, 65_535),
    ("uint16", 10_000.0, 10_000),
    ("float32", 0.0, 1),
    ("float32", 7.0, 7),
  ):
    images = rng.integers(0, 256, (3, 3, 2)).astype(dtype)
    found = vit.normalize(jnp.array(images), mean=mean, std=std, max_value=most)
    wanted = (images.astype(np.float64) / one - mean) / std
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_named_channels_keep_the_very_network_of_rgb(rgb):
  wanted = fields() | dict(mean=[*np.linspace(0.1, 0.4, 13)])
  for place, name in enumerate(RGB):
    wanted["mean"][name] = rgb.backbone["mean"][place]
  wanted["std"] = list(wanted["std"])
  for place, name in enumerate(RGB):
    wanted["std"][name] = rgb.backbone["std"][place]
  made = image_fields.adapted(rgb, wanted, rgb=RGB)
  side = rgb.backbone["patch_size"] * rgb.backbone["pos_grid"]
  rng = np.random.default_rng(0)
  photos = rng.integers(0, 256, (2, side, side, 3), np.uint8)
  bands = rng.integers(0, 4_095, (2, side, side, 13)).astype(np.float32)
  bands[..., list(RGB)] = photos / 255 * 4_095
  made.backbone["image_dtype"] = "float32"  # no rounding to 16 bits
  np.testing.assert_allclose(tokens(made, bands), tokens(rgb, photos), atol=2e-4)


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_the_mean_of_rgb_sees_a_grey_image_whatever_the_number_of_channels(
  rgb, channels
):
  made = image_fields.adapted(rgb, fields(channels), rgb=())
  kernel = np.asarray(rgb.params["backbone"]["patch_embed"]["kernel"], np.float64)
  slices = kernel.reshape(-1, 3, kernel.shape[-1])
  found = np.asarray(made.params["backbone"]["patch_embed"]["kernel"])
  found = found.reshape(-1, channels, kernel.shape[-1])
  wanted = slices.sum(1, keepdims=True) / channels  # the mean times 3 / C
  np.testing.assert_allclose(found, np.repeat(wanted, channels, 1), rtol=1e-6)
  np.testing.assert_allclose(found.sum(1), slices.sum(1), rtol=1e-4, atol=1e-6)
  model.check_shapes(made.backbone, made.params, "made")
  assert (
    made.params["backbone"]["patch_embed"]["bias"]
    is (rgb.params["backbone"]["patch_embed"]["bias"])
  )


def test_weights_of_the_wanted_images_stay_as_they_are(rgb):
  same = image_fields.adapted(rgb, rgb.backbone, rgb=())
  assert same.params is rgb.params and same.backbone == rgb.backbone
  bands = image_fields.adapted(rgb, fields(), rgb=())
  again = image_fields.adapted(bands, fields(), rgb=RGB)
  assert again.params is bands.params
  with pytest.raises(errors.UserError) as caught:
    model.fit(bands, rgb.backbone, "a.pth")
  assert str(caught.value) == (
    "a.pth is another network: of 13 channels, and config.backbone of 3"
    " (config.data.channels)"
  )


@pytest.mark.parametrize("name", ["a", "a.safetensors", "a.pth"])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_13_channels_go_through_every_format(rgb, tmp_path, name, dtype):
  wanted = fields(dtype=dtype, most=0.0 if dtype == "float32" else 4_095.0)
  made = image_fields.adapted(rgb, wanted, rgb=RGB)
  path = str(tmp_path / name)
  lost = formats.write(made, path, formats.guess(path))
  again = formats.read(path, heads=rgb.backbone["heads"])
  for one, other in zip(
    jax.tree.leaves(made.params["backbone"]),
    jax.tree.leaves(again.params["backbone"]),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other)
  found = {field: again.backbone[field] for field in image_fields.FIELDS}
  if name.endswith(".pth"):  # which has no place for them
    assert found == image_fields.usual(13)
    (line,) = [line for line in lost if line.startswith("mean=")]
    assert f"image_dtype={dtype}" in line
  else:
    assert found == wanted


def test_a_folder_for_transformers_holds_13_channels_too(rgb, tmp_path):
  made = image_fields.adapted(rgb, fields(), rgb=RGB)
  formats.write(made, str(tmp_path / "hf"), "huggingface")
  again = formats.read(str(tmp_path / "hf"))
  assert again.backbone == made.backbone


@pytest.mark.parametrize(
  ("name", "value", "wanted"),
  [
    ("mean", (0.1,) * 17, f"{MANY} 0.0 to 1"),
    ("mean", (0.1,) * 12, f"{MANY} 0.0 to 1"),
    ("std", (0.0,) * 13, f"{MANY} 1e-06 to 1"),
    ("image_dtype", "int8", "uint8 or uint16 or float32"),
    ("max_value", -1.0, "a number, at least 0"),
    ("max_value", float("inf"), "a number, at least 0"),
  ],
)
def test_fields_that_cannot_be_are_named(rgb, name, value, wanted):
  wrong = rgb.backbone | fields() | {name: value}
  with pytest.raises(errors.UserError, match=f"^a.json has {name}=.*must be {wanted}$"):
    model.architecture(wrong, "a.json")


def test_a_program_takes_images_of_the_networks_own_layout(rgb):
  from dinojax import backbone

  made = backbone.of_weights(image_fields.adapted(rgb, fields(), rgb=RGB))
  side = made.sizes["crop"]
  images = np.random.default_rng(0).integers(0, 4_095, (2, side, side, 13), np.uint16)
  program = jax.export.deserialize(
    export.stablehlo(export.of_backbone(made), side).serialize()
  )
  np.testing.assert_allclose(
    program.call(images)[2], made(images).patches, rtol=1e-4, atol=1e-5
  )
  with pytest.raises(errors.UserError) as caught:
    made(images[..., :3])
  assert str(caught.value) == (
    f"images are [2, {side}, {side}, 3], of 3 channels; give 13 channels [B, H, W, 13]"
  )
  with pytest.raises(errors.UserError, match="are uint8; give uint16, as stored: they"):
    made(images.astype(np.uint8))
