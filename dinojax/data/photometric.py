"""Colour and blur of a crop: one pass that filters, one that changes colours.

Brightness, contrast, saturation, hue and greyscale are each an affine function of RGB,
so that together they are one 3 x 4 matrix; Gaussian blur and what the resampling leaves
to blur or to sharpen are one separable kernel. Everything is uint8, rounded to nearest,
and clipped only at the end.

Source: the torchvision transforms that DINOv2 (arXiv:2304.07193) is built from.
DIFFERS: torchvision clips and rounds after each of the four steps of its jitter, in a
random order. Without that the order makes no difference (a test says so), and
highlights come back that a bright step would have cut off before a dark one.
DIFFERS: blur comes before colour here, as it does in a camera; but for clipping, these
two commute as well.
DIFFERS: a blur has the variance that its sigma says. torchvision samples the Gaussian,
which below a sigma of 0.4 does next to nothing.
DIFFERS: hue turns about the grey axis at constant luma (YIQ), where torchvision turns
it in HSV at constant maximum; a fifth of a turn either way is the same change of hue,
with another change of brightness.
"""

import dataclasses
import math

import cv2
import numpy as np

LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601
GREY = np.tile(LUMA, (3, 1))
CHROMA = np.eye(3) - GREY
_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
# A quarter turn of chroma: greys go to 0.
QUARTER = np.linalg.inv(_YIQ) @ np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ _YIQ
# What `color_matrix` adds up: parts of RGB, and an equal offset of all three.
_BASIS = np.zeros((4, 3, 4))
_BASIS[0, :, :3], _BASIS[1, :, :3], _BASIS[2, :, :3] = GREY, CHROMA, QUARTER
_BASIS[3, :, 3] = 1
_BASIS = _BASIS.reshape(4, 12)
# A Gaussian of less variance is too narrow for its samples to have that variance.
THREE_TAPS = 0.36


@dataclasses.dataclass(frozen=True)
class Jitter:
  """Colour jitter: factors are drawn from 1 +- strength, the hue's turn from +-hue."""

  prob: float
  brightness: float
  contrast: float
  saturation: float
  hue: float  # in turns of the colour circle, at most 0.5


@dataclasses.dataclass(frozen=True)
class Blur:
  """Gaussian blur; its kernel covers as many pixels in a large crop as in a small."""

  prob: float
  sigma: tuple[float, float]  # range, in pixels of the crop
  kernel: int  # taps at most; few of them where sigma is small


class Ranges:
  """What is drawn from for N crops of an image; arrays, since NumPy starts slowly."""

  def __init__(self, crops):
    """crops: a sequence of `augment.Crop`."""
    # Sigma, brightness, contrast, saturation and turn.
    ranges = [(crop.blur.sigma, *_factors(crop.jitter)) for crop in crops]
    self.low, self.high = np.moveaxis(np.array(ranges), -1, 0)  # [N, 5]
    self.probs = np.array(  # [N, 4]
      [(c.blur.prob, c.jitter.prob, c.grey_prob, c.solarize_prob) for c in crops]
    )


@dataclasses.dataclass(frozen=True)
class Look:
  """What one crop is going to look like."""

  sigma: float  # of its blur; 0: none
  factors: tuple[float, ...] | None  # arguments of `color_matrix` after the luma
  solarize: bool


def sample_looks(rng: np.random.Generator, ranges: Ranges) -> list[Look]:
  """Draws which steps are taken for each of N crops, and how strong."""
  draws = rng.random((len(ranges.low), 9))
  values = ranges.low + (ranges.high - ranges.low) * draws[:, :5]
  steps = draws[:, 5:] < ranges.probs
  looks = []
  for (sigma, *factors), (blur, jitter, grey, solarize) in zip(
    values.tolist(), steps.tolist(), strict=True
  ):
    brightness, contrast, saturation, turn = factors if jitter else (1, 1, 1, 0)
    colors = (brightness, contrast, 0 if grey else saturation, turn)
    changed = jitter or grey
    looks.append(Look(sigma if blur else 0.0, colors if changed else None, solarize))
  return looks


def _factors(jitter):
  """Ranges of the factors of `color_matrix`."""
  strengths = jitter.brightness, jitter.contrast, jitter.saturation
  around_1 = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths]
  return *around_1, (-jitter.hue, jitter.hue)


def apply(
  image: np.ndarray,
  look: Look,
  *,
  variance: tuple[float, float],
  kernel: int,
  out: np.ndarray,
) -> None:
  """Filters and colours one crop.

  Args:
    image: uint8 RGB [S, S, 3].
    look: but for its sigma, of which `variance` is left.
    variance: see `smooth`.
    kernel: see `smooth`.
    out: uint8 [S, S, 3], contiguous; holds the result.
  """
  image = smooth(image, variance=variance, kernel=kernel)
  if look.factors:
    image = cv2.transform(image, color_matrix(mean_luma(image), *look.factors))
  if look.solarize:
    image = solarize(image)
  out[...] = image


def mean_luma(image: np.ndarray) -> float:
  """Mean luma of uint8 RGB, about which contrast changes."""
  red, green, blue, _ = cv2.mean(image)
  return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def color_matrix(
  luma: float, brightness: float, contrast: float, saturation: float, turn: float
) -> np.ndarray:
  """Brightness, contrast, saturation and hue, in any order, as one affine map of RGB.

  Args:
    luma: mean of the image that is changed.
    brightness: factor; 0 gives black.
    contrast: factor of the distance from the mean luma.
    saturation: factor of the distance from each pixel's luma; 0 gives a grey image.
    turn: of the hue, as a fraction of the colour circle.

  Returns:
    [3, 4] for cv2.transform: three columns for R, G and B, and what is added.
  """
  scale, angle = brightness * contrast, 2 * math.pi * turn
  amounts = (
    scale,
    scale * saturation * math.cos(angle),
    scale * saturation * math.sin(angle),
    brightness * luma * (1 - contrast),
  )
  return np.dot(amounts, _BASIS).reshape(3, 4)


def smooth(
  image: np.ndarray, *, variance: tuple[float, float], kernel: int
) -> np.ndarray:
  """Blurs or sharpens uint8 [S, S, 3]; borders are mirrored.

  Args:
    image: the crop.
    variance: of the filter along x and y; one that sharpens has less than 0.
    kernel: taps at most; a Gaussian also ends at three sigmas.
  """
  if variance == (0, 0):
    return image
  x, y = (_taps(along, kernel) for along in variance)
  return cv2.sepFilter2D(image, -1, x, y, borderType=cv2.BORDER_REFLECT_101)


def _taps(variance, kernel):
  """A symmetric filter of that variance whose sum is 1."""
  if variance < THREE_TAPS:
    return np.array([variance / 2, 1 - variance, variance / 2])
  radius = min(kernel // 2, math.ceil(3 * math.sqrt(variance)))
  half = [math.exp(-0.5 * i * i / variance) for i in range(1, radius + 1)]
  total = 1 + 2 * sum(half)
  return np.array([*half[::-1], 1, *half]) / total


def solarize(image: np.ndarray) -> np.ndarray:
  """Inverts the values of uint8 that are 128 or above."""
  return cv2.min(image, cv2.bitwise_not(image))
