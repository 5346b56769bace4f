"""One warp from image to crop, antialiased: what stands in for a slow exact filter.

Three parts share the work. The image is halved, and smoothed by three taps, as often
and as much as the crop's scale asks for; these levels are made once for all the crops
of an image. The warp itself is bilinear, or bicubic where a crop is larger than what it
shows. What both blurred too much, a short filter on the crop sharpens again, together
with whatever blur the augmentation asks for (photometric.py), in one pass.

Fitted to Pillow's antialiased bicubic on 256 photographs; tests/bench/input.py tells
how close it comes.
"""

import dataclasses
import math

import cv2
import numpy as np

from dinojax.data import geometry

EDGE = cv2.BORDER_REPLICATE


@dataclasses.dataclass(frozen=True)
class Filter:
  """What a level is smoothed by, for crops up to a scale."""

  scale: float  # pixels of the level per pixel of the crop, at most
  side_tap: float  # the taps are (t, 1 - 2t, t) in both directions
  interpolation: int

  @property
  def blur(self) -> float:
    """Variance along an axis of taps and bilinear warp, in pixels of the level."""
    return 2 * self.side_tap + 1 / 6


FILTERS = (
  Filter(1.0, 0.0, cv2.INTER_CUBIC),  # at 1 itself it copies
  Filter(1.2, 0.0, cv2.INTER_LINEAR),
  Filter(1.6, 0.17, cv2.INTER_LINEAR),
  Filter(2.3, 1 / 4, cv2.INTER_LINEAR),
  Filter(2.9, 1 / 3, cv2.INTER_LINEAR),
)
# How much of its blur a crop keeps, in pixels of the crop: Pillow's filter has some.
KEPT_BLUR = 0.097


class Levels:
  """An image at falling resolutions and sharpness, each made when first asked for."""

  def __init__(self, pixels: np.ndarray, halvings: int):
    """Keeps the finest level: what `images.Probed.decode` returned."""
    self.first = halvings
    # OpenCV warps four channels in half the time of three.
    pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA)
    # Pixels of a level, and how many pixels of the full image one is wide and high.
    self._halved = [(pixels, 2.0**halvings, 2.0**halvings)]
    self._smooth = {}

  def get(self, halvings: int, side_tap: float) -> tuple[np.ndarray, float, float]:
    """Returns a level, and how many pixels of the image one of it is wide and high.

    Args:
      halvings: of the full image, at least `first`.
      side_tap: see `Filter`.
    """
    index = halvings - self.first
    while len(self._halved) <= index:
      finer, x, y = self._halved[-1]
      height, width = finer.shape[:2]
      size = ((width + 1) // 2, (height + 1) // 2)
      # The mean of 2 x 2 pixels; where their number is odd, a little to the side.
      coarser = cv2.resize(finer, size, interpolation=cv2.INTER_LINEAR)
      self._halved.append((coarser, x * width / size[0], y * height / size[1]))
    pixels, x, y = self._halved[index]
    if (halvings, side_tap) not in self._smooth:
      self._smooth[halvings, side_tap] = _smooth(pixels, side_tap)
    return self._smooth[halvings, side_tap], x, y


def warp_crop(
  levels: Levels, warp: np.ndarray, size: int
) -> tuple[np.ndarray, tuple[float, float]]:
  """Warps one crop, but for its sharpening.

  Args:
    levels: of the image.
    warp: [3, 3] from the crop's coordinates to the full image's, see geometry.py.
    size: S.

  Returns:
    uint8 RGB [S, S, 3], and the side taps, along x and along y, of the three-tap filter
    that `photometric.smooth` then has to apply: (-t, 1 + 2t, -t).
  """
  (a, b), (c, d) = geometry.jacobian(warp, size)
  area = abs(a * d - b * c)  # pixels of the image per pixel of the crop
  halvings = levels.first
  while (scale := math.sqrt(area) / 2**halvings) > FILTERS[-1].scale:
    halvings += 1
  chosen = next(f for f in FILTERS if scale <= f.scale)
  pixels, x, y = levels.get(halvings, chosen.side_tap)
  # OpenCV's coordinates are of pixel centres.
  to_level = np.array([[1 / x, 0, -0.5], [0, 1 / y, -0.5], [0, 0, 1]])
  to_edges = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
  crop = cv2.warpPerspective(
    pixels,
    to_level @ warp @ to_edges,
    (size, size),
    flags=cv2.WARP_INVERSE_MAP | chosen.interpolation,
    borderMode=EDGE,
  )
  crop = cv2.cvtColor(crop, cv2.COLOR_RGBA2RGB)
  if chosen.interpolation == cv2.INTER_CUBIC:
    return crop, (0.0, 0.0)
  # Halving blurs as a box does. Rows of the inverse take blur from image to crop.
  blur = (chosen.blur * 4**halvings + (4**halvings - 1) / 12) / area**2
  along_x, along_y = blur * (b * b + d * d), blur * (a * a + c * c)
  return crop, (along_x - KEPT_BLUR, along_y - KEPT_BLUR)


def _smooth(pixels, side_tap):
  """Three taps in both directions; of two kinds OpenCV makes short work."""
  if not side_tap:
    return pixels
  if side_tap == 1 / 3:
    return cv2.blur(pixels, (3, 3), borderType=EDGE)
  if side_tap == 1 / 4:
    return cv2.GaussianBlur(pixels, (3, 3), 0, borderType=EDGE)
  taps = np.array([side_tap, 1 - 2 * side_tap, side_tap])
  return cv2.sepFilter2D(pixels, -1, taps, taps, borderType=EDGE)
