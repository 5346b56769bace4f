"""Colour and blur of a crop: one pass that filters, one that changes colours.

Brightness, contrast, saturation, hue and greyscale are each an affine function of RGB,
so that together they are one 3 x 4 matrix; Gaussian blur and the resampling's
sharpening are one separable kernel. Everything is uint8, rounded to nearest, and
clipped only at the end.

Source: the torchvision transforms that DINOv2 (arXiv:2304.07193) is built from.
DIFFERS: torchvision clips and rounds after each of the four steps of its jitter, in a
random order. Without that the order makes no difference (a test says so), and
highlights come back that a bright step would have cut off before a dark one.
DIFFERS: blur comes before colour here, as it does in a camera; but for clipping, these
two commute as well.
DIFFERS: hue turns about the grey axis at constant luma (YIQ), where torchvision turns
it in HSV at constant maximum; a fifth of a turn either way is the same change of hue,
with another change of brightness.
"""

import dataclasses
import math

import cv2
import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])  # of ITU-R BT.601
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
PLAIN = dict(brightness=1.0, contrast=1.0, saturation=1.0, turn=0.0)
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


@dataclasses.dataclass(frozen=True)
class Look:
  """What one crop is going to look like."""

  sigma: float  # of its blur; 0: none
  factors: dict[str, float] | None  # arguments of `color_matrix` besides the luma
  solarize: bool


def sample_look(
  rng: np.random.Generator,
  *,
  jitter: Jitter,
  grey_prob: float,
  blur: Blur,
  solarize_prob: float,
) -> Look:
  """Draws which steps are taken, and how strong."""
  sigma = between(rng, *blur.sigma) if rng.random() < blur.prob else 0.0
  factors = sample_jitter(rng, jitter) if rng.random() < jitter.prob else None
  if rng.random() < grey_prob:
    factors = (factors or PLAIN) | {"saturation": 0.0}
  return Look(sigma, factors, rng.random() < solarize_prob)


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
    image = cv2.transform(image, color_matrix(mean_luma(image), **look.factors))
  if look.solarize:
    image = solarize(image)
  out[...] = image


def between(rng: np.random.Generator, low: float, high: float) -> float:
  """Draws evenly; as rng.uniform, in a quarter of its time."""
  return low + (high - low) * rng.random()


def sample_jitter(rng: np.random.Generator, jitter: Jitter) -> dict[str, float]:
  """Draws the arguments of `color_matrix` besides the luma."""
  factors = {
    name: between(rng, max(0.0, 1 - strength), 1 + strength)
    for name, strength in (
      ("brightness", jitter.brightness),
      ("contrast", jitter.contrast),
      ("saturation", jitter.saturation),
    )
  }
  return factors | {"turn": between(rng, -jitter.hue, jitter.hue)}


def mean_luma(image: np.ndarray) -> float:
  """Mean luma of uint8 RGB, about which contrast changes."""
  red, green, blue, _ = cv2.mean(image)
  return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def color_matrix(
  luma: float, *, brightness: float, contrast: float, saturation: float, turn: float
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
