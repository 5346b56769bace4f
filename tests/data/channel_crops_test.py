"""Crops of images of any number of channels and type: geometry, blur, brightness."""

import numpy as np
import pytest

from dinojax.data import augment, labelled_batches, layouts, photometric
from experiments import vitg14


def multi_crop(layout, **fields):
  config = vitg14.get_config().augment.to_dict()
  for name, size in (("global1", 32), ("global2", 32), ("local", 16)):
    config[name] |= {"size": size, **fields}
  return augment.make_multi_crop(**config, layout=layout)


def noise(channels, dtype, seed=0):
  smooth = np.random.default_rng(seed).random((12, 10, channels)).repeat(6, 0)
  return (smooth.repeat(6, 1) * {"uint8": 255, "uint16": 9_000}[dtype]).astype(dtype)


def crops_of(layout, image, seed=1, **fields):
  return multi_crop(layout, **fields)(np.random.default_rng(seed), image)


@pytest.mark.parametrize("channels", [1, 2, 4, 7, 13, 16])
def test_each_channel_is_cropped_and_blurred_as_if_it_were_alone(channels):
  image = noise(channels, "uint16")
  found = crops_of(layouts.Layout(channels, "uint16"), image)
  assert found["global_crops"].shape == (2, 32, 32, channels)
  assert found["local_crops"].shape == (8, 16, 16, channels)
  for channel in range(channels):
    alone = crops_of(layouts.Layout(1, "uint16"), image[..., [channel]])
    for name, crops in found.items():
      assert crops.dtype == np.uint16
      difference = crops[..., channel].astype(int) - alone[name][..., 0]
      assert np.abs(difference).max() <= 1  # by rounding


def test_three_channels_of_8_bits_are_the_crops_of_rgb():
  image = noise(3, "uint8")
  plain, rgb = crops_of(layouts.Layout(3, "uint8"), image), crops_of(layouts.RGB, image)
  for name, crops in rgb.items():
    np.testing.assert_array_equal(plain[name], crops)


def test_16_bits_and_floating_point_give_the_crops_of_8_bits_without_their_rounding():
  """The values of an image times 200, as 16 bits, and over 255 as floating point."""
  image = 100 + noise(3, "uint8") // 5  # which nothing clips
  colours = dict(solarize_prob=0.0)
  small = crops_of(layouts.RGB, image, **colours)
  for dtype, factor in (("uint16", 200), ("float32", 1 / 255)):
    scaled = (image.astype(np.float64) * factor).astype(dtype)
    found = crops_of(layouts.Layout(3, dtype), scaled, **colours)
    for name, crops in small.items():
      assert np.abs(found[name] / factor - crops).max() < 4  # each step rounds


def test_brightness_and_contrast_are_one_factor_for_all_about_each_channels_mean():
  rng = np.random.default_rng(0)
  image = rng.normal(3, 20, (9, 9, 4)).astype(np.float32)
  brightness, contrast = 1.3, 0.6
  appearance = photometric.Appearance(0.0, (brightness, contrast, 0.2, 0.3), False)
  out = np.empty_like(image)
  photometric.apply(image, appearance, variance=(0, 0), kernel=9, out=out, rgb=False)
  exact = image.astype(np.float64)
  mean = exact.mean((0, 1))
  wanted = brightness * (mean + contrast * (exact - mean))
  np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-4)


def test_colours_that_need_rgb_are_off():
  image = np.full((40, 40, 13), 30, np.uint8)
  image[..., 5] = 230  # solarized it would be 25
  jitter = dict(prob=1.0, brightness=0.0, contrast=0.0, saturation=0.9, hue=0.5)
  how = dict(jitter=jitter, grey_prob=1.0, solarize_prob=1.0)
  for crops in crops_of(layouts.Layout(13, "uint8"), image, **how).values():
    np.testing.assert_array_equal(crops, np.broadcast_to(image[0, 0], crops.shape))


def test_a_crop_of_finetuning_has_every_channel():
  kind = labelled_batches.random_crop(size=24, min_area=0.4, flip_prob=0.5)
  image = noise(6, "uint16")
  layout, rng = layouts.Layout(6, "uint16"), np.random.default_rng
  crop = labelled_batches.crop_image(rng(3), image, kind, layout=layout)
  one = layouts.Layout(1, "uint16")
  for channel in range(6):
    part = image[..., [channel]]
    alone = labelled_batches.crop_image(rng(3), part, kind, layout=one)
    np.testing.assert_array_equal(crop[..., channel], alone[..., 0])
