"""Drawing on pixels: outlines, masks, heat, captions, thumbnails, sheets of cells.

Images are uint8 [H, W, 3]. Positions are (x, y), continuous and in pixels: pixel (i, j)
covers [j, j+1] x [i, i+1].
"""

import functools
import io
import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

WHITE, INK, FAINT = (255, 255, 255), (28, 32, 38), (104, 112, 122)
GLOBALS = ((230, 120, 0), (0, 114, 178))  # orange and blue, for any eyes
LOCAL, RIGHT, WRONG = (0, 158, 115), (0, 140, 90), (200, 40, 60)
# Of a map from 0 to 1: dark blue, green, yellow, each lighter than the one before.
STOPS = np.array(
  [
    *([20, 14, 70], [52, 60, 140], [36, 118, 142]),
    *([54, 176, 118], [190, 214, 60], [253, 240, 120]),
  ],
  np.float64,
)
GAP = 6  # pixels between cells
TEXT = 12  # pixels of a caption's letters
LINE = 16
SHIFT = 4  # bits of a fraction of a pixel, in OpenCV's positions


@functools.cache
def _font() -> ImageFont.ImageFont:
  return ImageFont.load_default(TEXT)


def heat(values: np.ndarray) -> np.ndarray:
  """Colours uint8 [..., 3] of values [...] from 0 to 1, by STOPS."""
  place = np.clip(np.nan_to_num(values), 0, 1) * (len(STOPS) - 1)
  below = np.minimum(place.astype(int), len(STOPS) - 2)
  part = (place - below)[..., None]
  return np.rint(STOPS[below] * (1 - part) + STOPS[below + 1] * part).astype(np.uint8)


def stretched(values: np.ndarray) -> np.ndarray:
  """Values from their least, 0, to their largest, 1; all 0 where they are equal."""
  low, high = values.min(), values.max()
  return (values - low) / (high - low if high > low else 1)


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
  """An image at another size: whole pixels repeated, or antialiased bicubic."""
  rows, columns = image.shape[:2]
  whole = width % columns == 0 and height % rows == 0
  kind = Image.Resampling.NEAREST if whole else Image.Resampling.BICUBIC
  return np.asarray(Image.fromarray(image).resize((width, height), kind))


def fitted(image: np.ndarray, side: int) -> np.ndarray:
  """An image resized so that its longer side has `side` pixels; at least 1 each."""
  height, width = image.shape[:2]
  scale = side / max(height, width)
  return resized(image, *(max(round(x * scale), 1) for x in (width, height)))


def outlined(
  image: np.ndarray,
  corners: Sequence[np.ndarray],
  colours: Sequence[tuple[int, int, int]],
  *,
  width: int = 2,
) -> np.ndarray:
  """An image with closed lines on it.

  Args:
    image: uint8 [H, W, 3].
    corners: of each line, [n, 2] positions.
    colours: of each line.
    width: pixels.
  """
  canvas = np.array(image)
  size = np.array(image.shape[1::-1])
  for points, colour in zip(corners, colours, strict=True):
    # Half a line inside, or one along the border of the image would be cut in half.
    inside = np.clip(points, width / 2, size - width / 2)
    ends = np.rint((inside - 0.5) * 2**SHIFT).astype(np.int32)  # from pixel centres
    cv2.polylines(canvas, [ends], True, colour, width, cv2.LINE_AA, SHIFT)
  return canvas


def hidden(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """An image with masked patches hatched over.

  Args:
    image: uint8 [H, W, 3].
    mask: bool [h, w], True where a patch is hidden; h and w divide H and W.
  """
  height, width = image.shape[:2]
  rows, columns = height // mask.shape[0], width // mask.shape[1]
  pixels = mask.repeat(rows, 0).repeat(columns, 1)
  y, x = np.indices(pixels.shape)
  hatch = np.where(((x + y) // 3 % 2 == 0)[..., None], 70, 104).astype(np.uint8)
  return np.where(pixels[..., None], hatch, image)


def framed(image: np.ndarray, colour: tuple[int, int, int], width: int = 4):
  """An image with a frame over its border."""
  result = np.array(image)
  result[:width] = result[-width:] = colour
  result[:, :width] = result[:, -width:] = colour
  return result


def caption(text: str, width: int) -> np.ndarray:
  """One line of text, shortened where it is too long, uint8 [LINE, width, 3]."""
  canvas = Image.new("RGB", (width, LINE), WHITE)
  pen, font = ImageDraw.Draw(canvas), _font()
  if pen.textlength(text, font) > width:
    while text and pen.textlength(text + "...", font) > width:
      text = text[:-1]
    text += "..."
  pen.text((0, 0), text, INK, font)
  return np.asarray(canvas)


def captioned(image: np.ndarray, text: str) -> np.ndarray:
  """An image with a line of text below it."""
  return np.concatenate([image, caption(text, image.shape[1])])


def stack(parts: Sequence[np.ndarray], *, axis: int) -> np.ndarray:
  """Images side by side along an axis, with white between and beside them."""
  across = max(part.shape[1 - axis] for part in parts)
  padded = []
  for part in parts:
    margins = [[0, 0], [0, 0], [0, 0]]
    margins[axis][1], margins[1 - axis][1] = GAP, across - part.shape[1 - axis]
    padded.append(np.pad(part, margins, constant_values=255))
  return np.concatenate(padded, axis=axis)


def sprites(thumbs: np.ndarray) -> tuple[np.ndarray, int]:
  """One picture of many thumbnails, row by row, and how many a row has.

  Args:
    thumbs: uint8 [M, t, t, 3], M at least 1.
  """
  count, side = thumbs.shape[:2]
  columns = math.ceil(math.sqrt(count))
  rows = math.ceil(count / columns)
  padded = np.zeros((rows * columns, side, side, 3), np.uint8)
  padded[:count] = thumbs
  grid = padded.reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
  return grid.reshape(rows * side, columns * side, 3), columns


def encode(image: np.ndarray, kind: str) -> bytes:
  """The file of an image: "png", without loss, or "webp", small."""
  file = io.BytesIO()
  options = {"png": dict(optimize=True), "webp": dict(quality=70, method=4)}[kind]
  Image.fromarray(np.ascontiguousarray(image)).save(file, kind, **options)
  return file.getvalue()
