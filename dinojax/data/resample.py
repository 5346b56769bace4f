"""Antialiased warp from image to crop, a fast approximation of an exact filter.

It has three steps. The image is smoothed and halved as often as the crop's scale needs;
all crops of an image share these levels (an image pyramid). Where a crop has about as
many pixels as the part that it shows, that part is enlarged instead. Then the warp
itself is bilinear. The blur of all steps is subtracted from the blur that the
augmentation asks for; the difference, a blur or a sharpening, is one short filter on
the crop (photometric.py).

Constants are fitted to Pillow's antialiased bicubic on 256 photographs;
tests/bench/input.py measures the difference.
"""

import dataclasses
import functools
import math

import cv2
import numpy as np

from dinojax.data import geometry

EDGE = cv2.BORDER_REPLICATE
TO_EDGES = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # from pixel centres
# Scales, in pixels of a level for one of the crop, up to which the level is enlarged,
# smoothed lightly, once, or twice. From there on it is halved.
ENLARGED, LIGHTLY, ONCE, TWICE = 1.25, 1.65, 2.25, 3.2
# Pixels of an enlarged part for one of the crop: enough to hide the errors of a
# bilinear warp. A blur of HIDING_SIGMA pixels of the level hides them, too.
ENLARGED_SCALE, HIDING_SIGMA = 2.0, 0.55
MARGIN = 3  # pixels around a part; a bicubic filter reads two
# Variances along an axis: of a bilinear warp and of enlarging, in pixels of the level;
# and the blur that a crop keeps, in its own pixels, since Pillow's filter blurs, too.
WARP_BLUR, ENLARGED_BLUR, KEPT_BLUR = 1 / 6, 0.055, 0.097


@dataclasses.dataclass(frozen=True)
class Level:
  """An image, or a part of it, at some resolution and sharpness."""

  pixels: np.ndarray  # 1 or 4 channels; RGB have a fourth beside them, see `levels`
  width: float  # of a pixel, in pixels of the full image
  height: float
  blur: float  # variance along an axis, in pixels of this level
  left: float = 0.0  # its position in the image, in pixels of this level
  top: float = 0.0
  channels: int = 3  # of the crop

  @functools.cached_property
  def from_image(self) -> np.ndarray:
    """[3, 3] from positions in the full image to OpenCV's, which count from centres."""
    x, y = -self.left - 0.5, -self.top - 0.5
    return np.array([[1 / self.width, 0, x], [0, 1 / self.height, y], [0, 0, 1]])

  @functools.cached_property
  def smoothed(self) -> "Level":
    """Smoothed by taps of 1/4, 1/2 and 1/4, for which OpenCV has a fast path."""
    pixels = cv2.GaussianBlur(self.pixels, (3, 3), 0, borderType=EDGE)
    return dataclasses.replace(self, pixels=pixels, blur=self.blur + 1 / 2)

  @functools.cached_property
  def halved(self) -> "Level":
    """Smoothed, then the means of 2 x 2 pixels."""
    height, width = self.pixels.shape[:2]
    size = ((width + 1) // 2, (height + 1) // 2)
    # If a side is odd, the means lie a little aside.
    pixels = cv2.resize(self.smoothed.pixels, size, interpolation=cv2.INTER_LINEAR)
    x, y = width / size[0], height / size[1]
    blur = (self.smoothed.blur + 1 / 4) / 4
    return Level(pixels, self.width * x, self.height * y, blur, channels=self.channels)

  def part(self, warp: np.ndarray, size: int) -> "Level":
    """The part that a crop shows, with a margin: the rest need not be filtered."""
    (a, b, c), (d, e, f), (g, h, i) = (self.from_image @ warp).tolist()
    corners = [(x, y, g * x + h * y + i) for x in (0, size) for y in (0, size)]
    xs = [int((a * x + b * y + c) / w) for x, y, w in corners]
    ys = [int((d * x + e * y + f) / w) for x, y, w in corners]
    left, top = max(min(xs) - MARGIN, 0), max(min(ys) - MARGIN, 0)
    right, bottom = max(xs) + MARGIN + 2, max(ys) + MARGIN + 2
    pixels = self.pixels[top:bottom, left:right]
    return dataclasses.replace(self, pixels=pixels, left=left, top=top)

  def lightly_smoothed(self, scale: float) -> "Level":
    """Smoothed by taps that grow with the scale; twice as slow as `smoothed`."""
    tap = scale / 8
    taps = np.array([tap, 1 - 2 * tap, tap])
    pixels = cv2.sepFilter2D(self.pixels, -1, taps, taps, borderType=EDGE)
    return dataclasses.replace(self, pixels=pixels, blur=self.blur + 2 * tap)

  def enlarged(self, scale: float) -> "Level":
    """Enlarged by bicubic, until a crop's pixel is ENLARGED_SCALE wide, not `scale`."""
    height, width = self.pixels.shape[:2]
    zoom = ENLARGED_SCALE / scale
    size = math.ceil(width * zoom), math.ceil(height * zoom)
    x, y = size[0] / width, size[1] / height
    return Level(
      cv2.resize(self.pixels, size, interpolation=cv2.INTER_CUBIC),
      self.width / x,
      self.height / y,
      # If a crop has more pixels than it shows, its own pixels limit that blur.
      (self.blur + ENLARGED_BLUR * min(scale, 1) ** 2) * x * y,
      self.left * x,
      self.top * y,
      self.channels,
    )


def finest(pixels: np.ndarray, halvings: int) -> Level:
  """The finest level, from the RGBA pixels of `images.Probed.decode`."""
  step = 2.0**halvings
  return Level(pixels, step, step, (1 - 1 / step**2) / 12)  # the means are of boxes


def levels(
  pixels: np.ndarray, halvings: int, channels: int
) -> list[tuple[slice, Level]]:
  """The finest levels of an image of any number of channels, and which each has.

  Each has 1 or 4, which OpenCV warps alike; 2 or 3 have others beside them, which
  `_warp` drops. More than 4 it cannot warp, 2 it warps at coarser positions, and 3 take
  twice the time.

  Args:
    pixels: as of `images.Probed.decode`, with a fourth channel beside 3.
    halvings: likewise.
    channels: of the image.
  """
  if channels == 3:
    return [(slice(3), finest(pixels, halvings))]
  found = []
  for first in range(0, channels, 4):
    part = slice(first, min(first + 4, channels))
    count = part.stop - first
    own = np.zeros((*pixels.shape[:2], 1 if count == 1 else 4), pixels.dtype)
    own[..., :count] = pixels[..., part]
    level = dataclasses.replace(finest(own, halvings), channels=count)
    found.append((part, level))
  return found


def warp_crop(
  level: Level, warp: np.ndarray, size: int, sigma: float
) -> tuple[np.ndarray, tuple[float, float]]:
  """Warps one crop; its last filter is left to do.

  Args:
    level: the finest of the image, or of some channels.
    warp: [3, 3] from the crop's coordinates to the full image's, see geometry.py.
    size: S.
    sigma: of the Gaussian blur that the crop is to have, in its pixels; 0: none.

  Returns:
    [S, S, channels] of the pixels' type, and the variances along x and y by which
    `photometric.smooth` has to blur it; negative to sharpen.
  """
  (a, b), (c, d) = geometry.jacobian(warp, size)
  area = abs(a * d - b * c)  # pixels of the image per pixel of the crop
  while (scale := math.sqrt(area / (level.width * level.height))) > TWICE:
    level = level.halved
  if abs(scale - 1) < 1e-9:  # a box of the crop's own size is copied
    return _warp(level, warp, size, cv2.INTER_CUBIC), (sigma**2, sigma**2)
  hidden = min(scale, 1) * sigma >= HIDING_SIGMA
  if scale > LIGHTLY or (scale > ENLARGED and hidden):
    level = level.smoothed if scale <= ONCE else level.smoothed.smoothed
  elif not hidden:
    part = level.part(warp, size)
    level = part.enlarged(scale) if scale <= ENLARGED else part.lightly_smoothed(scale)
  crop = _warp(level, warp, size, cv2.INTER_LINEAR)
  # The rows of the inverse convert blur from the image's pixels to the crop's.
  blur = (level.blur + WARP_BLUR) * level.width * level.height / area**2
  x, y = blur * (b * b + d * d), blur * (a * a + c * c)
  if hidden:
    return crop, (sigma**2 - x, sigma**2 - y)
  # Sharpening needs twice that, to restore fine detail.
  return crop, (sigma**2 - 2 * (x - KEPT_BLUR), sigma**2 - 2 * (y - KEPT_BLUR))


def _warp(level, warp, size, interpolation):
  """The bilinear or bicubic warp, without channels that stand beside others."""
  crop = cv2.warpPerspective(
    level.pixels,
    level.from_image @ warp @ TO_EDGES,
    (size, size),
    flags=cv2.WARP_INVERSE_MAP | interpolation,
    borderMode=EDGE,
  )
  if level.channels == 3:
    return cv2.cvtColor(crop, cv2.COLOR_RGBA2RGB)
  return np.ascontiguousarray(crop[..., :2]) if level.channels == 2 else crop
