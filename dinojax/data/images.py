"""Encoded image to RGB pixels: JPEG, PNG, WebP, BMP or GIF of any mode."""

import io

import numpy as np
from PIL import Image, ImageOps

# By content, not by file ending. Pillow's other formats stay shut: its EPS reader runs
# Ghostscript, and records come from the web.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 89_478_485  # 256 MiB as RGB; from here on Pillow suspects a bomb


def decode(image: bytes | np.ndarray) -> np.ndarray:
  """Decodes one image to RGB; arrays pass through.

  EXIF orientation is applied, transparency composed on white, 16-bit grey cut to its
  high byte, CMYK converted, and of an animation the first frame taken.

  Args:
    image: an encoded image, or uint8 [H, W, 3].

  Returns:
    uint8 [H, W, 3], possibly read-only.

  Raises:
    ValueError: empty, damaged or truncated, over MAX_PIXELS, or not of FORMATS.
  """
  if isinstance(image, np.ndarray):
    return image
  if not image:
    raise ValueError("zero bytes")
  try:
    with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
      if opened.width * opened.height > MAX_PIXELS:
        raise ValueError(f"{opened.width}x{opened.height} is over {MAX_PIXELS} pixels")
      return _to_rgb(ImageOps.exif_transpose(opened))
  except Exception as error:  # Pillow raises a dozen types on damaged bytes.
    raise ValueError(f"{type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image) -> np.ndarray:
  """Converts an image of any mode to uint8 [H, W, 3]."""
  if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits at 255.
    high_byte = np.clip(np.asarray(image, np.int64) >> 8, 0, 255).astype(np.uint8)
    return np.repeat(high_byte[..., None], 3, axis=-1)
  if image.has_transparency_data:
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    image = canvas
  return np.asarray(image.convert("RGB"))
