"""Color jitter, greyscale, Gaussian blur and solarization of a crop, in two passes.

Brightness, contrast, saturation, hue and greyscale are affine functions of RGB; their
product is one 3 x 4 matrix. Gaussian blur, and the blur or sharpening that resampling
leaves to do, are one separable kernel. Values are uint8, rounded to nearest and clipped
once, at the end.

Images of other channels than RGB have brightness and contrast alone: one factor for all
channels, contrast about each channel's own mean. Values of 16 bits are rounded and
clipped as those of 8, floating-point values neither.

Source: the torchvision transforms that DINOv2 (arXiv:2304.07193) is built from.
DIFFERS: torchvision clips and rounds after each of the four steps of its jitter, which
come in a random order. Without clipping the order makes no difference (a test shows
it), and a bright step followed by a dark one loses no highlights.
DIFFERS: blur comes before colour here; torchvision blurs afterwards. The two commute,
apart from clipping.
DIFFERS: a blur has the variance of its sigma. torchvision samples the Gaussian, which
below a sigma of 0.4 has hardly any effect.
DIFFERS: hue rotates about the grey axis at constant luma (YIQ). torchvision rotates it
in HSV at constant maximum. The change of hue is the same, that of brightness is not.
"""

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np

LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601
GREY = np.tile(LUMA, (3, 1))
CHROMA = np.eye(3) - GREY
_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
# A quarter turn of chroma: greys go to 0.
QUARTER = np.linalg.inv(_YIQ) @ np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ _YIQ
# Terms that `color_matrix` adds up: parts of RGB, and one offset for all three.
_BASIS = np.zeros((4, 3, 4))
_BASIS[0, :, :3], _BASIS[1, :, :3], _BASIS[2, :, :3] = GREY, CHROMA, QUARTER
_BASIS[3, :, 3] = 1
_BASIS = _BASIS.reshape(4, 12)
# Samples of a Gaussian of less variance do not have that variance.
THREE_TAPS = 0.36


@dataclasses.dataclass(frozen=True)
class Jitter:
  """Color jitter: factors are drawn from 1 +- strength, the hue's turn from +-hue."""

  prob: float
  brightness: float
  contrast: float
  saturation: float
  hue: float  # in turns of the colour circle, at most 0.5


@dataclasses.dataclass(frozen=True)
class Blur:
  """Gaussian blur; the kernel's size in pixels is the same for every crop size."""

  prob: float
  sigma: tuple[float, float]  # range, in pixels of the crop
  kernel: int  # taps at most; a small sigma needs fewer


class Ranges:
  """Ranges of all N crops of an image, as arrays: one call draws for all of them."""

  def __init__(self, crops):
    """crops: a sequence of `augment.Crop`."""
    # Sigma, brightness, contrast, saturation and turn.
    ranges = [(crop.blur.sigma, *_factors(crop.jitter)) for crop in crops]
    self.low, self.high = np.moveaxis(np.array(ranges), -1, 0)  # [N, 5]
    self.probs = np.array(  # [N, 4]
      [(c.blur.prob, c.jitter.prob, c.grey_prob, c.solarize_prob) for c in crops]
    )


@dataclasses.dataclass(frozen=True)
class Appearance:
  """The photometric augmentation of one crop."""

  sigma: float  # of its blur; 0: none
  factors: tuple[float, ...] | None  # of `color_matrix`, after its luma
  solarize: bool


def sample_appearances(rng: np.random.Generator, ranges: Ranges) -> list[Appearance]:
  """Draws the steps of each of N crops, and their strengths."""
  draws = rng.random((len(ranges.low), 9))
  values = ranges.low + (ranges.high - ranges.low) * draws[:, :5]
  steps = draws[:, 5:] < ranges.probs
  appearances = []
  for (sigma, *factors), (blur, jitter, grey, solarize) in zip(
    values.tolist(), steps.tolist(), strict=True
  ):
    brightness, contrast, saturation, turn = factors if jitter else (1, 1, 1, 0)
    colors = (brightness, contrast, 0 if grey else saturation, turn)
    changed = jitter or grey
    appearances.append(
      Appearance(sigma if blur else 0.0, colors if changed else None, solarize)
    )
  return appearances


def _factors(jitter):
  """Ranges of the factors of `color_matrix`."""
  strengths = jitter.brightness, jitter.contrast, jitter.saturation
  around_1 = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths]
  return *around_1, (-jitter.hue, jitter.hue)


def apply(
  image: np.ndarray,
  appearance: Appearance,
  *,
  variance: tuple[float, float],
  kernel: int,
  out: np.ndarray,
  rgb: bool = True,
) -> None:
  """Applies blur or sharpening, colours and solarization to one crop.

  Args:
    image: RGB [S, S, 3], or any 1 to 4 channels.
    appearance: its colours and solarization; of its sigma, `variance` is left to do.
    variance: see `smooth`.
    kernel: see `smooth`.
    out: of that shape and type; holds the result.
    rgb: whether it is RGB; others have neither saturation nor hue.
  """
  image = smooth(image, variance=variance, kernel=kernel)
  if appearance.factors:
    if rgb:
      matrix = color_matrix(mean_luma(image), *appearance.factors)
    else:
      matrix = channel_matrix(cv2.mean(image)[: out.shape[-1]], *appearance.factors[:2])
    image = cv2.transform(image, matrix)
  if appearance.solarize:
    image = solarize(image)
  out[...] = image.reshape(out.shape)  # OpenCV drops the axis of a single channel


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
    [3, 4] for cv2.transform: columns for R, G and B, and the offset.
  """
  scale, angle = brightness * contrast, 2 * math.pi * turn
  amounts = (
    scale,
    scale * saturation * math.cos(angle),
    scale * saturation * math.sin(angle),
    brightness * luma * (1 - contrast),
  )
  return np.dot(amounts, _BASIS).reshape(3, 4)


def channel_matrix(
  means: Sequence[float], brightness: float, contrast: float
) -> np.ndarray:
  """Brightness and contrast of any channels as one affine map.

  Args:
    means: of the C channels of the image that is changed.
    brightness: factor; 0 gives black.
    contrast: factor of the distance from the channel's mean.

  Returns:
    [C, C + 1] for cv2.transform.
  """
  offsets = brightness * (1 - contrast) * np.array(means)
  return np.column_stack([brightness * contrast * np.eye(len(offsets)), offsets])


def smooth(
  image: np.ndarray, *, variance: tuple[float, float], kernel: int
) -> np.ndarray:
  """Blurs or sharpens [S, S, C]; borders are reflected.

  Args:
    image: the crop.
    variance: of the filter along x and y; negative to sharpen.
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
