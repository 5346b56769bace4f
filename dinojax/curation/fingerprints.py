"""Perceptual fingerprints: a 64-bit hash and an 8 x 8 thumbnail, and their comparison.

The hash is the usual perceptual one: signs of the lowest DCT frequencies against their
median. It proposes pairs. The thumbnails confirm them, since different small images may
share a hash.
"""

import cv2
import numpy as np

SIDE = 32  # pixels from which the hash is made
LOW = 8  # frequencies of each direction
THUMB = 8  # pixels of a thumbnail's side
# A difference must also be small relative to the contrast: between skies and blank
# pages all differences are small. Measured on CIFAR-10, see tests/bench/ingest.py.
CONTRAST_SHARE = 0.2
LEAST_CONTRAST = 8.0


def perceptual_hash(image: np.ndarray) -> np.uint64:
  """64 bits of an image uint8 [H, W, 3]; similar images differ in few of them."""
  grey = cv2.cvtColor(resize_to_square(image, SIDE), cv2.COLOR_RGB2GRAY)
  low = cv2.dct(grey.astype(np.float32))[: LOW + 1, : LOW + 1]
  # The first one is the brightness; the next of the first column takes its place.
  values = np.append(low[:LOW, :LOW].ravel()[1:], low[LOW, 0])
  return np.packbits(values > np.median(values)).view(np.uint64)[0]


def resize_to_square(image: np.ndarray, side: int) -> np.ndarray:
  """Squeezes uint8 [H, W, 3] to [side, side, 3], each pixel the mean of its area."""
  height, width = image.shape[:2]
  grows = height < side or width < side
  interpolation = cv2.INTER_LINEAR if grows else cv2.INTER_AREA
  return cv2.resize(image, (side, side), interpolation=interpolation)


def hamming_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """The number of bits in which hashes differ; uint8."""
  return np.bitwise_count(a ^ b)


def same_image(a: np.ndarray, b: np.ndarray, max_difference: float) -> np.ndarray:
  """Whether thumbnails uint8 [..., 8, 8, 3] are of the same image; bool [...].

  Args:
    a: thumbnails.
    b: thumbnails, broadcast against them.
    max_difference: mean absolute difference, of 255, up to which they may be.
  """
  a, b = a.astype(np.float32), b.astype(np.float32)
  axes = (-3, -2, -1)
  difference = np.abs(a - b).mean(axes)
  contrast = np.maximum((a.std(axes) + b.std(axes)) / 2, LEAST_CONTRAST)
  return (difference <= max_difference) & (difference <= CONTRAST_SHARE * contrast)
