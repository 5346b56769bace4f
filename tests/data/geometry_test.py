"""Warps fill their ranges, and none of them looks beyond the image."""

import collections
import math

import numpy as np
import pytest

from dinojax.data import geometry

STILL = dict(rotate=0.0, shear=0.0, perspective=0.0, dihedral=False)
EXTREME = dict(rotate=180.0, shear=45.0, perspective=0.4, dihedral=True)
RECIPE = dict(area=(0.05, 0.32), aspect=(3 / 4, 4 / 3))


def draw(rng, height, width, *, size=32, flip_prob=0.0, ranges=RECIPE, **changes):
  return geometry.sample_warp(
    rng,
    height,
    width,
    size=size,
    flip_prob=flip_prob,
    geometry=geometry.Geometry(**STILL | changes),
    **ranges,
  )


def to_image(warp, points):
  """Where points of the crop, [n, 2], come to lie: float64 [n, 2]."""
  x, y, w = warp @ np.concatenate([points.T, np.ones((1, len(points)))])
  assert (w > 0).all()
  return np.stack([x / w, y / w], axis=1)


def corners(warp, size=32):
  square = np.array([[0, 0], [0, size], [size, 0], [size, size]], np.float64)
  return to_image(warp, square)


def test_boxes_fill_the_ranges_of_area_and_aspect():
  rng = np.random.default_rng(0)
  boxes = [geometry.sample_box(rng, 800, 1000, **RECIPE) for _ in range(4000)]
  height, width = np.array(boxes, np.float64).T
  share, ratio = height * width / (800 * 1000), width / height
  assert 0.0495 < share.min() < 0.055
  assert 0.315 < share.max() < 0.3205
  assert abs(share.mean() - 0.185) < 0.005
  assert 0.745 < ratio.min() < 0.76
  assert 1.32 < ratio.max() < 1.345
  assert abs(np.log(ratio).mean()) < 0.012


def test_without_ranges_a_warp_is_a_box_of_whole_pixels_anywhere_in_the_image():
  rng = np.random.default_rng(0)
  seen = np.array([corners(draw(rng, 80, 100)) for _ in range(2000)])  # [n, 4, 2]
  np.testing.assert_allclose(seen, np.rint(seen), atol=1e-9)
  assert np.abs(seen[:, 0, 0] - seen[:, 1, 0]).max() < 1e-9  # the left edge is upright
  assert np.abs(seen[:, 0, 1] - seen[:, 2, 1]).max() < 1e-9
  np.testing.assert_allclose(seen.min((0, 1)), [0, 0], atol=1e-9)
  np.testing.assert_allclose(seen.max((0, 1)), [100, 80], atol=1e-9)


@pytest.mark.parametrize(
  "shape", [(1, 1), (2, 1), (7, 8), (3, 1000), (60, 600), (600, 60), (400, 500)]
)
@pytest.mark.parametrize("area", [(0.05, 0.32), (0.32, 1.0), (1.0, 1.0)])
def test_every_pixel_of_a_crop_comes_from_the_image(shape, area):
  rng, ranges = np.random.default_rng(0), RECIPE | dict(area=area)
  for _ in range(100):
    seen = corners(draw(rng, *shape, ranges=ranges, flip_prob=0.5, **EXTREME))
    assert seen.min() > -1e-6
    assert (seen < np.array(shape[::-1]) + 1e-6).all()


def test_a_panorama_keeps_its_variety():
  rng, ranges = np.random.default_rng(0), RECIPE | dict(area=(0.32, 1.0))
  seen = [corners(draw(rng, 50, 1000, ranges=ranges, rotate=10.0)) for _ in range(300)]
  left, right = np.array([x[:, 0] for x in seen]).T[[0, -1]]
  assert left.min() < 100 and right.max() > 900
  width = np.array([np.linalg.norm(x[2] - x[0]) for x in seen])
  assert width.max() / width.min() > 1.4
  assert width.max() <= 50 * 4 / 3 + 1  # and no crop is of another aspect


def test_angles_fill_their_range_where_the_image_leaves_room():
  rng, ranges = np.random.default_rng(0), dict(area=(0.05, 0.05), aspect=(1.0, 1.0))
  degrees, leans = [], []
  for _ in range(1000):
    warp = draw(rng, 500, 500, ranges=ranges, rotate=20.0, shear=10.0)
    (a, b), (c, d) = geometry.jacobian(warp, 32)
    degrees.append(math.degrees(math.atan2(c, a)))
    leans.append(math.degrees(math.atan2(-b, d)) - degrees[-1])
  assert -20.01 < min(degrees) < -19 and 19 < max(degrees) < 20.01
  assert abs(np.mean(degrees)) < 1.5
  assert 9 < np.abs(leans).max() < 10.01


def test_perspective_changes_scale_from_edge_to_edge_by_its_range():
  rng, ranges = np.random.default_rng(0), dict(area=(0.05, 0.05), aspect=(1.0, 1.0))
  ratios = []
  for _ in range(500):
    seen = corners(draw(rng, 500, 500, ranges=ranges, perspective=0.1))
    ratios.append(np.linalg.norm(seen[1] - seen[0]) / np.linalg.norm(seen[3] - seen[2]))
  assert 1.2 < max(ratios) < 1.1 / 0.9 * 1.1
  assert 0.95 < np.exp(np.log(ratios).mean()) < 1.05


def test_the_eight_quarter_turns_and_mirror_images_come_equally_often():
  rng, counts = np.random.default_rng(0), collections.Counter()
  for _ in range(1600):
    ((a, b), (c, d)) = geometry.jacobian(
      draw(rng, 90, 90, flip_prob=0.5, dihedral=True), 32
    )
    counts[tuple(int(np.sign(round(x, 9))) for x in (a, b, c, d))] += 1
  assert len(counts) == 8
  assert min(counts.values()) > 145  # 200, and four standard deviations


def test_scale_is_the_pixels_of_the_image_for_one_of_the_crop():
  warp = draw(np.random.default_rng(0), 400, 400, rotate=30.0)
  a, b, c, d = corners(warp)
  (x, y), (u, v) = d - a, c - b  # the diagonals
  area = 0.5 * abs(x * v - y * u)
  assert geometry.scale(warp, 32) == pytest.approx(math.sqrt(area) / 32, rel=1e-6)
