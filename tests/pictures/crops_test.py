"""Outlines show where a crop's pixels come from, and masks are those of training."""

import numpy as np
import pictures
import pytest

from dinojax.data import augment, images
from dinojax.pictures import crops
from experiments import vitg14


def config(**crop):
  """The reference recipe without colours and blur, and other fields of each crop."""
  config = vitg14.get_config()
  with config.unlocked():
    for name in ("global1", "global2", "local"):
      group = config.augment[name]
      group.jitter.prob = group.blur.prob = 0.0
      group.update(grey_prob=0.0, solarize_prob=0.0, **crop)
  return config


def places(height=400, width=600):
  """An image whose red is the place in x, and whose green is that in y."""
  image = np.zeros((height, width, 3), np.uint8)
  image[..., 0] = np.linspace(0, 255, width).round()
  image[..., 1] = np.linspace(0, 255, height).round()[:, None]
  return image


def read_from(image):
  return lambda record, make: make(image)


def test_the_outline_is_where_the_pixels_of_each_crop_come_from():
  found = crops.of_config(read_from(places()), [3, 4], config())
  for some in found:
    all_crops = [*some.global_crops, *some.local_crops]
    assert some.corners.shape == (10, 4, 2)
    for crop, corners in zip(all_crops, some.corners, strict=True):
      pixels = crop[[0, 0, -1, -1], [0, -1, -1, 0], :2] / 255
      # Half a pixel of the crop lies between its corner and a pixel's centre.
      np.testing.assert_allclose(pixels, corners / [600, 400], atol=0.03)


def test_crops_are_the_same_as_without_their_outlines():
  recipe = vitg14.get_config()
  multi_crop = augment.make_multi_crop(**recipe.augment.to_dict())
  (image,) = pictures.make(1, side=300)
  some = crops.make(multi_crop, image, seed=(0, 7), mask=np.zeros((2, 256), bool))
  alone = multi_crop(np.random.default_rng((0, 7)), image)
  np.testing.assert_array_equal(some.global_crops, alone["global_crops"])
  np.testing.assert_array_equal(some.local_crops, alone["local_crops"])


def test_outlines_fit_an_image_that_is_decoded_at_a_fraction_of_its_size(monkeypatch):
  image = places()
  multi_crop = augment.make_multi_crop(**config().augment.to_dict())
  whole, halved = images.probe(image), image[::2, ::2]
  monkeypatch.setattr(crops.images, "decode", lambda *_, **__: halved)
  mask = np.zeros((2, 256), bool)
  some = crops.make(multi_crop, image, seed=(1,), mask=mask)
  assert (whole.height, whole.width) == (400, 600)
  assert some.image.shape == (200, 300, 3)
  assert some.corners.max(initial=0) <= 300
  assert some.corners[:2, :, 0].max() > 150


def test_half_of_the_crops_are_masked_as_in_a_group_of_training():
  recipe = vitg14.get_config()
  hidden = crops.masks(
    20, seed=0, group_size=16, grid=16, masking_fields=recipe.masking.to_dict()
  )
  assert hidden.shape == (20, 2, 256)
  assert hidden[:16].reshape(32, -1).any(1).sum() == 16
  assert hidden.mean(-1).max() <= 0.5


@pytest.mark.parametrize("size", [(1, 1), (3, 900)])
def test_images_of_any_size_are_outlined(size):
  image = np.zeros((*size, 3), np.uint8)
  (some,) = crops.of_config(read_from(image), [0], config())
  drawn = some.outlined()
  assert max(drawn.shape) == crops.SHOWN
  assert [x.shape for x in some.masked_crops()] == [(224, 224, 3)] * 2
