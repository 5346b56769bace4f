"""One warp comes close to Pillow's antialiased bicubic, and turns what it should."""

import cv2
import numpy as np
import photographs
import pytest
from PIL import Image

from dinojax.data import geometry, photometric, resample


def crop_of(image, warp, size):
  """A crop, sharpened as it has to be."""
  pixels, sharpen = resample.warp_crop(resample.Levels(image, 0), warp, size)
  return photometric.smooth(pixels, sharpen=sharpen, sigma=0.0, kernel=9)


def box_warp(left, top, width, height, size):
  return np.array([[width / size, 0, left], [0, height / size, top], [0, 0, 1.0]])


@pytest.mark.parametrize("size", [224, 98])
@pytest.mark.parametrize(
  ("height", "width", "decibels"),
  [
    *((100, 110, 35), (150, 120, 35), (150, 200, 35), (230, 226, 35)),
    *((280, 240, 35), (400, 500, 35)),
    (224, 300, 33),  # to 224: as it is along one side, and shrunk along the other
  ],
)
def test_a_box_is_close_to_pillows_antialiased_bicubic(size, height, width, decibels):
  image = photographs.photograph()
  top, left = (400 - height) // 2, (500 - width) // 3
  ours = crop_of(image, box_warp(left, top, width, height, size), size)
  pixels = Image.fromarray(image[top : top + height, left : left + width])
  pillow = np.asarray(pixels.resize((size, size), Image.Resampling.BICUBIC))
  assert photographs.psnr(ours, pillow) >= decibels


@pytest.mark.parametrize("side", [60, 150, 350])
def test_a_warp_is_the_mean_of_what_lies_under_each_pixel(side):
  image, size = photographs.photograph(), 98
  rng = np.random.default_rng(side)
  share = side * side / (400 * 500)
  warp = geometry.sample_warp(
    rng,
    400,
    500,
    size=size,
    area=(share, share),
    aspect=(0.9, 1.1),
    flip_prob=1.0,
    geometry=geometry.Geometry(rotate=25.0, shear=8.0, perspective=0.1, dihedral=True),
  )
  fine = 8  # points along each side of a pixel
  y, x = np.mgrid[0 : size * fine, 0 : size * fine]
  points = np.stack([x.ravel() + 0.5, y.ravel() + 0.5, np.full(x.size, fine)]) / fine
  sx, sy, w = warp @ points
  sx, sy = ((s / w - 0.5).reshape(x.shape).astype(np.float32) for s in (sx, sy))
  sampled = cv2.remap(image, sx, sy, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
  mean = sampled.reshape(size, fine, size, fine, 3).mean((1, 3))
  assert photographs.psnr(crop_of(image, warp, size), mean) > 30


def test_halving_more_often_where_a_crop_is_much_smaller_than_its_box():
  image = cv2.resize(photographs.photograph(), (1500, 1200))
  ours = crop_of(image, box_warp(0, 0, 1500, 1200, 98), 98)
  pillow = Image.fromarray(image).resize((98, 98), Image.Resampling.BICUBIC)
  assert photographs.psnr(ours, np.asarray(pillow)) >= 35


@pytest.mark.parametrize("size", [1, 5, 32])
def test_a_tiny_image_gives_a_crop_of_any_size(size):
  image = np.full((1, 1, 3), (10, 200, 90), np.uint8)
  np.testing.assert_array_equal(
    crop_of(image, box_warp(0, 0, 1, 1, size), size),
    np.broadcast_to(image, (size, size, 3)),
  )
