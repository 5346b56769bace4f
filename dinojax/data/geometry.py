"""Random homography of a crop: from the crop's pixels to those of the image.

It is the box of a random resized crop, then rotated, sheared and tilted about its
centre as far as it stays inside the image, and flipped. A homography has eight numbers:
area, aspect (the anisotropic scale), two of position, angle, shear and two of
perspective. Nothing is resampled here; resample.py does that, once.

Coordinates are (x, y), continuous and in pixels: pixel (i, j) covers [j, j+1] x [i,
i+1]. So an image covers [0, W] x [0, H], whatever the resolution of its copies.
"""

import dataclasses
import math

import numpy as np

TRIES = 10  # boxes drawn before one is fitted to the image; torchvision's number
BISECTIONS = 5  # find the largest angles that fit, to 1/32 of those drawn


@dataclasses.dataclass(frozen=True)
class Geometry:
  """Ranges of one kind of crop; each value is uniform in +- its range."""

  rotate: float  # degrees
  shear: float  # degrees by which the crop's vertical edges lean
  perspective: float  # relative change of scale from the centre to each edge
  dihedral: bool  # whether to draw one of the 4 quarter turns, flipped or not


def sample_warp(
  rng: np.random.Generator,
  height: int,
  width: int,
  *,
  size: int,
  area: tuple[float, float],
  aspect: tuple[float, float],
  flip_prob: float,
  geometry: Geometry,
) -> np.ndarray:
  """Draws where a crop of size x size pixels lies in an image.

  If the drawn box with the drawn angles does not fit into the image, the angles shrink
  in proportion until it does. So every output pixel comes from the image, also from a
  narrow one.

  Returns:
    [3, 3] homography from the crop's coordinates in [0, size]**2 to the image's.
  """
  box_height, box_width = sample_box(rng, height, width, area=area, aspect=aspect)
  limits = math.radians(geometry.rotate), math.radians(geometry.shear)
  limits += geometry.perspective, geometry.perspective
  amounts = [(2 * rng.random() - 1) * limit for limit in limits]
  tilt, left, top, right, bottom = _tilt(box_width, box_height, *amounts)
  if right - left > width or bottom - top > height:
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
      middle = (low + high) / 2
      shrunk = [middle * amount for amount in amounts]
      _, left, top, right, bottom = _tilt(box_width, box_height, *shrunk)
      fits = right - left <= width and bottom - top <= height
      low, high = (middle, high) if fits else (low, middle)
    shrunk = [low * amount for amount in amounts]
    tilt, left, top, right, bottom = _tilt(box_width, box_height, *shrunk)
  # Whole pixels, so that without angles this is the usual crop.
  x = int(rng.random() * (math.floor(width - right + left) + 1)) - left
  y = int(rng.random() * (math.floor(height - bottom + top) + 1)) - top
  # The crop's pixels to [-1, 1]**2, flipped and rotated; then the tilt and the shift.
  # Written out, since a call of NumPy takes longer than these products.
  mirror, cos, sin = _turn(rng, flip_prob, geometry.dihedral)
  a, b, c = 2 / size * mirror * cos, -2 / size * sin, sin - mirror * cos
  d, e, f = 2 / size * mirror * sin, 2 / size * cos, -cos - mirror * sin
  (ax, bx), (ay, by), (nx, ny) = tilt
  g, h, i = nx * a + ny * d, nx * b + ny * e, nx * c + ny * f + 1
  return np.array(
    [
      [ax * a + bx * d + x * g, ax * b + bx * e + x * h, ax * c + bx * f + x * i],
      [ay * a + by * d + y * g, ay * b + by * e + y * h, ay * c + by * f + y * i],
      [g, h, i],
    ]
  )


def sample_box(
  rng: np.random.Generator,
  height: int,
  width: int,
  *,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> tuple[int, int]:
  """Draws the size of a random resized crop's box.

  Its share of the image is uniform in `area`; width / height is log-uniform in
  `aspect`.

  DIFFERS: when no try fits into the image, torchvision takes the largest central box.
  Here a panorama keeps its variety: the share is taken of the largest box of the drawn
  aspect, and the box may lie anywhere.

  Returns:
    (height, width) in whole pixels, at most those of the image.
  """
  low, high = math.log(aspect[0]), math.log(aspect[1])
  for _ in range(TRIES):
    share = area[0] + (area[1] - area[0]) * rng.random()
    ratio = math.exp(low + (high - low) * rng.random())
    target = height * width * share
    w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
    if 0 < w <= width and 0 < h <= height:
      return h, w
  side = math.sqrt(share / area[1])
  w, h = min(width, height * ratio) * side, min(height, width / ratio) * side
  return max(int(h), 1), max(int(w), 1)


def scale(warp: np.ndarray, size: int) -> float:
  """Pixels of the image per pixel of the crop at its centre; above 1: it shrinks."""
  (a, b), (c, d) = jacobian(warp, size)
  return math.sqrt(abs(a * d - b * c))


def corners(warp: np.ndarray, size: int) -> np.ndarray:
  """The crop's outline in the image: (x, y) of its four corners in order, [4, 2].

  A homography keeps lines straight, so they are the whole outline.

  Args:
    warp: of `sample_warp`.
    size: pixels of the crop's side.
  """
  square = np.array([[0, size, size, 0], [0, 0, size, size], [1, 1, 1, 1]])
  x, y, w = warp @ square
  return np.stack([x / w, y / w], axis=1)


def jacobian(
  warp: np.ndarray, size: int
) -> tuple[tuple[float, float], tuple[float, float]]:
  """Derivatives ((dX/dx, dX/dy), (dY/dx, dY/dy)) of a warp at the crop's centre."""
  (a, b, c), (d, e, f), (g, h, i) = warp.tolist()
  x = y = size / 2
  w = g * x + h * y + i
  p, q = (a * x + b * y + c) / w, (d * x + e * y + f) / w
  return ((a - p * g) / w, (b - p * h) / w), ((d - q * g) / w, (e - q * h) / w)


def _tilt(width, height, angle, lean, near_x, near_y):
  """Homography from [-1, 1]**2 to a tilted box about 0, and its extent.

  Returns:
    Columns 0 and 1 of the homography as rows (column 2 is (0, 0, 1)), then left, top,
    right and bottom of the box.
  """
  cos, sin = math.cos(angle) / 2, math.sin(angle) / 2
  slope = math.tan(lean)
  ax, ay = cos * width, sin * width  # the vector of the box's half width
  bx, by = (cos * slope - sin) * height, (sin * slope + cos) * height
  back, front = 1 - near_x, 1 + near_x  # at the middle of the left and the right edge
  a, b, c, d = back - near_y, back + near_y, front - near_y, front + near_y
  xs = (-ax - bx) / a, (bx - ax) / b, (ax - bx) / c, (ax + bx) / d
  ys = (-ay - by) / a, (by - ay) / b, (ay - by) / c, (ay + by) / d
  tilt = (ax, bx), (ay, by), (near_x, near_y)
  return tilt, min(xs), min(ys), max(xs), max(ys)


def _turn(rng, flip_prob, dihedral):
  """Draws -1 (flip) or 1, and cosine and sine of a quarter turn."""
  mirror = -1 if rng.random() < flip_prob else 1
  if not dihedral:
    return mirror, 1, 0
  return mirror, *((1, 0), (0, 1), (-1, 0), (0, -1))[int(4 * rng.random())]
