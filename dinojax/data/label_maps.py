"""Label maps: the class of each pixel of an image, as records of sources have them.

A record's "label_map" is an encoded PNG, or uint8 [H, W]. It lies over the whole
upright image, whatever the sizes of both. Its values number classes from 0 on, but for
IGNORE, whose pixels count nowhere.

Dimension key: S pixels of a square's side, N patches of it, C classes, M patches kept.
"""

import io

import einops
import numpy as np
from PIL import PngImagePlugin

from dinojax.data import headers, images

IGNORE = 255
MODES = ("L", "P", "1")  # of Pillow: grey, palette, black and white
SPREAD = {2: 85, 4: 17}  # by bits of a grey PNG: Pillow spreads its values over a byte
# Of one picture, sides may differ but not their ratio: by this, or by rounded sides.
MAX_STRETCH = 0.02


def decode(
  stored: bytes | np.ndarray, *, max_pixels: int = images.MAX_PIXELS
) -> np.ndarray:
  """The values of a label map, uint8 [H, W]; arrays pass through.

  A palette PNG has the numbers of its colours, a grey one its values as stored.

  Raises:
    ValueError: no PNG of one channel and at most 8 bits, damaged, or over the limit.
  """
  if isinstance(stored, np.ndarray):
    return stored
  if not stored:
    raise ValueError("its label map has zero bytes")
  try:
    header = headers.read(stored)
    if header.format != "PNG":
      raise ValueError(f"it is a {header.format}; give a PNG")
    if header.width * header.height > max_pixels:
      size = f"{header.width}x{header.height} pixels"
      raise ValueError(f"{size} are more than max_pixels={max_pixels}")
    with PngImagePlugin.PngImageFile(io.BytesIO(header.body)) as opened:
      if opened.mode not in MODES or header.depth > 8:
        raise ValueError(
          f"it is {opened.mode} of {header.depth} bits; give a palette or grey PNG, 8"
          " bits at most"
        )
      values = np.asarray(opened).astype(np.uint8)
      return values // (SPREAD.get(header.depth, 1) if opened.mode == "L" else 1)
  except Exception as error:  # Pillow raises a dozen types on damaged bytes
    reason = " ".join(str(error).split()) or type(error).__name__
    raise ValueError(f"its label map cannot be read: {reason}") from error


def check_shape(label_map: np.ndarray, height: int, width: int) -> None:
  """Raises ValueError if a map cannot lie over its image of height x width pixels."""
  rows, columns = label_map.shape
  # Half a pixel of each side, of the map and of the image, may have been rounded away.
  slack = MAX_STRETCH + 0.5 / min(rows, columns) + 0.5 / min(height, width)
  if abs(np.log(rows * width / (columns * height))) > slack:
    raise ValueError(
      f"its label map, {columns}x{rows} pixels, is of another shape than the upright"
      f" image, {width}x{height}"
    )


def to_square(label_map: np.ndarray, side: int) -> np.ndarray:
  """A map stretched to [S, S]: each pixel has the class at its centre.

  Args:
    label_map: uint8 [H, W].
    side: S.
  """
  rows, columns = (centres(size, side, (0, side)) for size in label_map.shape)
  return label_map[rows[:, None], columns]


def centres(size: int, resized: int, span: tuple[int, int]) -> np.ndarray:
  """Which of `size` pixels lie at the centres of a span of `resized` pixels, int."""
  return ((2 * np.arange(*span) + 1) * size) // (2 * resized)


def check_values(label_map: np.ndarray, num_classes: int) -> None:
  """Raises ValueError if a value is no class."""
  beyond = (label_map >= num_classes) & (label_map != IGNORE)
  if beyond.any():
    value = int(label_map[beyond].max())
    raise ValueError(
      f"its label map has the value {value}, and classes end at {num_classes - 1}"
    )


def patch_counts(square: np.ndarray, *, patch_size: int, num_classes: int):
  """How many pixels of each class each patch has: [S, S] -> int64 [N, C].

  Pixels to ignore are not among them.
  """
  patches = einops.rearrange(
    square, "(h p) (w q) -> (h w) (p q)", p=patch_size, q=patch_size
  )
  cell = np.arange(len(patches))[:, None] * num_classes + patches
  counts = np.bincount(cell[patches != IGNORE], minlength=len(patches) * num_classes)
  return counts.reshape(len(patches), num_classes)


def patch_shares(square: np.ndarray, *, patch_size: int, num_classes: int):
  """The share of each class in the labelled pixels of a patch: float32 [N, C].

  All 0 where a patch has none; otherwise as `patch_counts`.
  """
  counts = patch_counts(square, patch_size=patch_size, num_classes=num_classes)
  return np.float32(counts / np.maximum(counts.sum(1, keepdims=True), 1))


def choose(counts: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
  """Which patches of an image a bounded memory keeps: rising positions, at most M.

  Patches without a labelled pixel are left out. Those of classes that few patches of
  the image have are kept rather than others, as in Hummingbird's protocol
  (arXiv:2306.01667): the lowest of the summed frequencies of a patch's classes, each
  sum times a random number.

  Args:
    counts: [N, C], of `patch_counts`.
    most: M.
    rng: for this image.
  """
  present = counts > 0
  frequency = present.sum(0)  # [C] patches of the image that have a class
  scores = present @ frequency * rng.random(len(counts))
  scores[~present.any(1)] = np.inf
  found = min(most, np.isfinite(scores).sum())
  return np.sort(np.argsort(scores, kind="stable")[:found])
