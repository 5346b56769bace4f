"""Encoded image to RGB pixels: JPEG, PNG, WebP, BMP or GIF of any mode.

Pillow reads what a file is and decodes everything; libjpeg-turbo, by simplejpeg,
decodes sound JPEG files, faster and on request at a half, a quarter or an eighth of
their size.
"""

import dataclasses
import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

# By content, not by file ending. Pillow's other formats stay shut: its EPS reader runs
# Ghostscript, and records come from the web.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 89_478_485  # 256 MiB as RGB; from here on Pillow suspects a bomb
MAX_HALVINGS = 3  # a JPEG block has 8 x 8 pixels
ORIENTATION = 0x0112  # of EXIF; what undoes each, 1 being upright:
UPRIGHT = {
  2: lambda pixels: cv2.flip(pixels, 1),
  3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
  4: lambda pixels: cv2.flip(pixels, 0),
  5: cv2.transpose,
  6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
  7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
  8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


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
  pixels, _ = probe(image).decode()
  return pixels


@dataclasses.dataclass(frozen=True)
class Probed:
  """An image whose size is known, and whose pixels may not be decoded yet."""

  height: int  # of the upright image at full size
  width: int
  jpeg: bytes = b""  # what remains to be decoded, if `pixels` is None
  orientation: int = 1  # of the JPEG
  pixels: np.ndarray | None = None

  def decode(self, halvings: int = 0, *, alpha: bool = False) -> tuple[np.ndarray, int]:
    """Decodes as `decode` does, on request a JPEG at a fraction of its size.

    Args:
      halvings: at most so many times halved. Pixel (i, j) of an image halved n times
        is the mean of a square of 2**n x 2**n pixels that begins at (i, j) * 2**n.
      alpha: whether to add a channel of 255, which costs a JPEG nothing here.

    Returns:
      uint8 RGB, or RGBA, and how often it is halved; never, if it is no JPEG.

    Raises:
      ValueError: damaged or truncated.
    """
    if self.pixels is not None:
      pixels, halvings = self.pixels, 0
    else:
      pixels, halvings = self._decode_jpeg(halvings, alpha)
    if alpha and pixels.shape[-1] == 3:
      pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA)
    return pixels, halvings

  def _decode_jpeg(self, halvings, alpha):
    """As `decode`, but that what is damaged has no alpha."""
    halvings = min(halvings, MAX_HALVINGS)
    # Turned round, a block that is cut off at the end would shift all the others.
    while self.orientation > 1 and (self.height | self.width) % 2**halvings:
      halvings -= 1
    step = 2**halvings
    # Rows that are aligned libjpeg-turbo writes past the caches, straight to memory; to
    # read them there takes as long as a filter. So the first begins at an odd address.
    rows, columns = -(-self.height // step), -(-self.width // step)
    buffer = np.empty(1 + rows * columns * (4 if alpha else 3), np.uint8)[1:]
    try:
      pixels = simplejpeg.decode_jpeg(
        self.jpeg,
        "RGBA" if alpha else "RGB",
        min_height=min(rows, columns),
        min_width=min(rows, columns),
        min_factor=step,
        buffer=buffer,
      )
    except ValueError:
      # It is strict. Pillow puts up with stray bytes, as there are on the web.
      return _decode_by_pillow(self.jpeg), 0
    if self.orientation > 1:
      pixels = UPRIGHT[self.orientation](pixels)
    return pixels, halvings


def probe(image: bytes | np.ndarray) -> Probed:
  """Finds the size of an image; what is no JPEG is decoded at once.

  Raises:
    ValueError: as `decode`; of a JPEG, some damage shows only when it is decoded.
  """
  if isinstance(image, np.ndarray):
    return Probed(*image.shape[:2], pixels=image)
  if not image:
    raise ValueError("zero bytes")
  try:
    with _open(image) as opened:
      # Others are CMYK, and MPO, which is several.
      if opened.format == "JPEG" and opened.mode in ("L", "RGB"):
        width, height = opened.size
        orientation = opened.getexif().get(ORIENTATION, 1)
        orientation = orientation if orientation in UPRIGHT else 1
        if orientation >= 5:
          height, width = width, height
        return Probed(height, width, jpeg=image, orientation=orientation)
  except Exception as error:  # Pillow raises a dozen types on damaged bytes.
    raise ValueError(f"{type(error).__name__}: {error}") from error
  pixels = _decode_by_pillow(image)
  return Probed(*pixels.shape[:2], pixels=pixels)


def _open(image: bytes) -> Image.Image:
  """Reads the header; ValueError for a bomb."""
  opened = Image.open(io.BytesIO(image), formats=FORMATS)
  if opened.width * opened.height > MAX_PIXELS:
    raise ValueError(f"{opened.width}x{opened.height} is over {MAX_PIXELS} pixels")
  return opened


def _decode_by_pillow(image: bytes) -> np.ndarray:
  """Decodes any of FORMATS to uint8 [H, W, 3], or raises ValueError."""
  try:
    with _open(image) as opened:
      return _to_rgb(ImageOps.exif_transpose(opened))
  except Exception as error:
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
