"""One warp comes close to Pillow's antialiased bicubic, and turns what it should."""

import cv2
import numpy as np
import photographs
import pytest
from PIL import Image

from dinojax.data import geometry, images, photometric, resample


def crop_of(image, warp, size, sigma=0.0):
  """A crop, after its last filter."""
  level = resample.finest(*images.probe(image).decode(alpha=True))
  pixels, variance = resample.warp_crop(level, warp, size, sigma)
  return photometric.smooth(pixels, variance=variance, kernel=99)


def by_pillow(pixels, size):
  """Antialiased bicubic."""
  resized = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
  return np.asarray(resized)


def box_warp(left, top, width, height, size):
  return np.array([[width / size, 0, left], [0, height / size, top], [0, 0, 1.0]])


@pytest.mark.parametrize("size", [224, 98])
@pytest.mark.parametrize(
  ("height", "width"),
  [
    *((100, 110), (150, 120), (150, 200), (230, 226), (280, 240), (400, 500)),
    (224, 300),  # to 224: as it is along one side, and shrunk along the other
  ],
)
def test_a_box_is_close_to_pillows_antialiased_bicubic(size, height, width):
  image = photographs.photograph()
  top, left = (400 - height) // 2, (500 - width) // 3
  ours = crop_of(image, box_warp(left, top, width, height, size), size)
  box = image[top : top + height, left : left + width]
  assert photographs.psnr(ours, by_pillow(box, size)) >= 35


@pytest.mark.parametrize(
  ("sigma", "decibels"), [(0.2, 35), (0.5, 39), (0.6, 38), (1.0, 43), (2.0, 51)]
)
@pytest.mark.parametrize("side", [60, 100, 150, 390])
def test_a_blurred_crop_is_close_to_pillows_blurred_by_as_much(side, sigma, decibels):
  image = photographs.photograph()
  ours = crop_of(image, box_warp(30, 5, side, side, 98), 98, sigma)
  theirs = by_pillow(image[5 : 5 + side, 30 : 30 + side], 98).astype(np.float64)
  blurred = cv2.GaussianBlur(theirs, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
  assert photographs.psnr(ours, blurred) >= decibels


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
  assert photographs.psnr(ours, by_pillow(image, 98)) >= 35


@pytest.mark.parametrize("size", [1, 5, 32])
def test_a_tiny_image_gives_a_crop_of_any_size(size):
  image = np.full((1, 1, 3), (10, 200, 90), np.uint8)
  np.testing.assert_array_equal(
    crop_of(image, box_warp(0, 0, 1, 1, size), size),
    np.broadcast_to(image, (size, size, 3)),
  )
