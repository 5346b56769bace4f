"""Image decoding: JPEG, PNG, WebP, BMP and GIF of any mode, to RGB pixels.

Pillow decodes everything; libjpeg-turbo, by simplejpeg, decodes sound JPEG files,
faster and on request at a half, a quarter or an eighth of their size.
"""

import dataclasses
import functools
import io

import cv2
import numpy as np
import simplejpeg
from PIL import (
  BmpImagePlugin,
  GifImagePlugin,
  Image,
  JpegImagePlugin,
  PngImagePlugin,
  WebPImagePlugin,
)

from dinojax.data import depth, headers

# By content, not by file extension. Pillow's other formats stay shut: its EPS reader
# runs Ghostscript, and records come from the web. And not by `Image.open`, which warns
# of large images, and takes a JPEG with a gain map for an animation.
READERS = {
  "JPEG": JpegImagePlugin.JpegImageFile,
  "PNG": PngImagePlugin.PngImageFile,
  "WEBP": WebPImagePlugin.WebPImageFile,
  "BMP": BmpImagePlugin.BmpImageFile,
  "GIF": GifImagePlugin.GifImageFile,
}
FORMATS = tuple(READERS)
MAX_PIXELS = 89_478_485  # 256 MiB as RGB
# A JPEG may have so many times more pixels, since it can be decoded at half its size.
JPEG_FACTOR = 4
MAX_HALVINGS = 3  # a JPEG block has 8 x 8 pixels
UPRIGHT = {  # by EXIF orientation, 1 being upright
  2: lambda pixels: cv2.flip(pixels, 1),
  3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
  4: lambda pixels: cv2.flip(pixels, 0),
  5: cv2.transpose,
  6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
  7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
  8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def decode(image: bytes | np.ndarray, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
  """Decodes one image to RGB; arrays pass through.

  EXIF orientation is applied if it can be read. Transparency is composed on white, CMYK
  converted. Of an animation, or of several pictures in a file, the first is decoded. Of
  16 bits, the highest 8 that the image uses remain, see depth.py.

  Args:
    image: an encoded image, or uint8 [H, W, 3].
    max_pixels: the limit. A JPEG may have JPEG_FACTOR times as many; where they are
      more than MAX_PIXELS, it is decoded at a half, a quarter or an eighth of its size.

  Returns:
    uint8 [H, W, 3], possibly read-only.

  Raises:
    ValueError: empty, damaged or truncated, over the limit, or not of FORMATS. The
      message is one line and says which.
  """
  pixels, _ = probe(image).decode(max_pixels=max_pixels)
  return pixels


@dataclasses.dataclass(frozen=True)
class Probed:
  """An image whose header is read, and whose pixels are not decoded yet."""

  height: int  # of the upright image at full size
  width: int
  frames: int = 1  # of an animation
  header: headers.Header | None = None  # or else there are
  pixels: np.ndarray | None = None

  def decode(
    self, halvings: int = 0, *, alpha: bool = False, max_pixels: int = MAX_PIXELS
  ) -> tuple[np.ndarray, int]:
    """Decodes as `decode` does, on request a JPEG at a fraction of its size.

    Args:
      halvings: how often to halve it at most, where its size does not ask for more.
        Pixel (i, j) of an image halved n times is the mean of a square of 2**n x 2**n
        pixels that begins at (i, j) * 2**n.
      alpha: whether to add a channel of 255, which costs a JPEG nothing here.
      max_pixels: see `decode`.

    Returns:
      uint8 RGB or RGBA, and how often it was halved: 0 for other formats.

    Raises:
      ValueError: damaged or truncated, or over the limit.
    """
    if self.pixels is not None:
      pixels, halvings = self.pixels, 0
    else:
      least = self._least_halvings(max_pixels)
      try:
        pixels, halvings = self._decode(max(halvings, least), least, alpha)
      except MemoryError as error:
        size = f"{self.width}x{self.height} pixels"
        raise ValueError(f"there is not enough memory for {size}") from error
      except Exception as error:  # Pillow raises a dozen types on damaged bytes.
        raise ValueError(f"damaged {self.header.format}: {_reason(error)}") from error
    if alpha and pixels.shape[-1] == 3:
      pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA)
    return pixels, halvings

  def _least_halvings(self, max_pixels):
    """How often it has to be halved for its size; ValueError if it is too large."""
    count, jpeg = self.height * self.width, self.header.format == "JPEG"
    if count > max_pixels * (JPEG_FACTOR if jpeg else 1):
      times = f"{JPEG_FACTOR} times, for a JPEG, " if jpeg else ""
      raise ValueError(
        f"{self.width}x{self.height} pixels are more than {times}the limit of"
        f" max_pixels={max_pixels}; raise it, or shrink the image"
      )
    halvings = 0
    while jpeg and halvings < MAX_HALVINGS and count > MAX_PIXELS * 4**halvings:
      halvings += 1
    return halvings

  def _decode(self, halvings, least, alpha):
    """As `decode`, but with alpha only where that is free."""
    if self.header.format == "JPEG" and self.header.channels in (1, 3):
      halvings = min(halvings, MAX_HALVINGS)
      # An incomplete block at the end would come first in a rotated image, and shift
      # all the others.
      while (
        halvings > least
        and self.header.orientation > 1
        and (self.height | self.width) % 2**halvings
      ):
        halvings -= 1
      try:
        pixels = _decode_jpeg(self.header, halvings, alpha)
      except ValueError:
        # simplejpeg is strict. Pillow accepts stray bytes, as there are on the web.
        pixels, halvings = _decode_by_pillow(self.header, least), least
    else:
      pixels, halvings = _decode_by_pillow(self.header, least), least
    if self.header.orientation > 1:
      pixels = UPRIGHT[self.header.orientation](pixels)
    return pixels, halvings


def probe(image: bytes | np.ndarray) -> Probed:
  """Reads the header of an image.

  Raises:
    ValueError: as `decode`; some damage shows only when it is decoded.
  """
  if isinstance(image, np.ndarray):
    return Probed(*image.shape[:2], pixels=image)
  if not image:
    raise ValueError("zero bytes")
  header = headers.read(image)
  sides = header.height, header.width
  if header.orientation >= 5:
    sides = header.width, header.height
  return Probed(*sides, frames=header.frames, header=header)


def _reason(error: Exception) -> str:
  """What an exception says, on one line."""
  text = " ".join(str(error).split())
  if isinstance(error, (OSError, SyntaxError, ValueError)) and text:
    return text
  return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _decode_jpeg(header: headers.Header, halvings: int, alpha: bool) -> np.ndarray:
  """Decodes a sound JPEG of grey or RGB, halved, not yet upright."""
  step = 2**halvings
  # libjpeg-turbo writes aligned rows past the caches, straight to memory. Reading them
  # back takes as long as a filter. So the first row begins at an odd address.
  rows, columns = -(-header.height // step), -(-header.width // step)
  buffer = np.empty(1 + rows * columns * (4 if alpha else 3), np.uint8)[1:]
  return simplejpeg.decode_jpeg(
    header.body,
    "RGBA" if alpha else "RGB",
    min_height=min(rows, columns),
    min_width=min(rows, columns),
    min_factor=step,
    buffer=buffer,
  )


def _decode_by_pillow(header: headers.Header, halvings: int) -> np.ndarray:
  """Decodes any of FORMATS to uint8 [H, W, 3], not yet upright."""
  if header.depth == 16:
    return _to_rgb(depth.to_8_bits(functools.partial(_open, header)))
  with _open(header) as opened:
    if halvings:
      step = 2**halvings
      opened.draft(None, (header.width // step, header.height // step))
    return _to_rgb(opened)


def _open(header: headers.Header) -> Image.Image:
  """Opens a file by Pillow."""
  opened = READERS[header.format](io.BytesIO(header.body))
  if opened.size != (header.width, header.height):
    raise ValueError(f"its sizes contradict each other: {opened.size}")
  return opened


def _to_rgb(image: Image.Image) -> np.ndarray:
  """Converts an image of any mode of 8 bits to uint8 [H, W, 3]."""
  if image.has_transparency_data:
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    image = canvas
  return np.asarray(image.convert("RGB"))
