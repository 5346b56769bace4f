"""Image decoding: JPEG, PNG, WebP, BMP and GIF of any mode, NumPy arrays, TIFF.

All become [H, W, C] of the layout that a run wants, RGB of 8 bits unless it says so.
Pillow decodes pictures; libjpeg-turbo, by simplejpeg, decodes sound JPEG files, faster
and on request at a half, a quarter or an eighth of their size. arrays.py reads the
others.
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

from dinojax.data import arrays, depth, headers, layouts

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
ARRAY_BYTES = 16  # of an array, for each of as many pixels as there may be
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


def decode(
  image: bytes | np.ndarray,
  *,
  max_pixels: int = MAX_PIXELS,
  layout: layouts.Layout | None = layouts.RGB,
) -> np.ndarray:
  """Decodes one image; arrays in memory pass through.

  EXIF orientation is applied if it can be read. Transparency is composed on white, CMYK
  converted. Of an animation, or of several pictures in a file, the first is decoded. Of
  16 bits, the highest 8 that the image uses remain where 8 are wanted, see depth.py.

  Args:
    image: an encoded image, or [H, W, C] as a source has it in memory.
    max_pixels: the limit. A JPEG may have JPEG_FACTOR times as many; where they are
      more than MAX_PIXELS, it is decoded at a half, a quarter or an eighth of its size.
    layout: of the result; None: of arrays and of PNG of 16 bits their own, of other
      pictures RGB.

  Returns:
    [H, W, C], possibly read-only.

  Raises:
    ValueError: empty, damaged or truncated, over the limit, of another layout, or of no
      known format. The message is one line and says which.
    UserError: a TIFF, and tifffile is not installed.
  """
  pixels, _ = probe(image, layout).decode(max_pixels=max_pixels)
  return pixels


@dataclasses.dataclass(frozen=True)
class Probed:
  """An image whose header is read, and whose pixels are not decoded yet."""

  height: int  # of the upright image at full size
  width: int
  frames: int = 1  # of an animation
  layout: layouts.Layout | None = layouts.RGB
  header: headers.Header | None = None  # of a picture, or else there is
  array: arrays.Stored | None = None  # or
  pixels: np.ndarray | None = None

  def decode(
    self, halvings: int = 0, *, alpha: bool = False, max_pixels: int = MAX_PIXELS
  ) -> tuple[np.ndarray, int]:
    """Decodes as `decode` does, on request a JPEG at a fraction of its size.

    Args:
      halvings: how often to halve it at most, where its size does not ask for more.
        Pixel (i, j) of an image halved n times is the mean of a square of 2**n x 2**n
        pixels that begins at (i, j) * 2**n.
      alpha: whether to add a fourth channel to three, which costs a JPEG nothing here.
      max_pixels: see `decode`.

    Returns:
      [H, W, C], and how often it was halved: 0 for other formats.

    Raises:
      ValueError: damaged or truncated, of another layout, or over the limit.
    """
    if self.array is not None and self.layout:  # before it takes memory
      self.layout.check(self.array.channels, self.array.dtype)
    if self.pixels is not None:
      pixels, halvings = self.pixels, 0
    else:
      least = self._least_halvings(max_pixels)
      kind = "array" if self.array else self.header.format
      try:
        pixels, halvings = self._decode(max(halvings, least), least, alpha)
      except MemoryError as error:
        size = f"{self.width}x{self.height} pixels"
        raise ValueError(f"there is not enough memory for {size}") from error
      except Exception as error:  # Pillow raises a dozen types on damaged bytes.
        raise ValueError(f"damaged {kind}: {_reason(error)}") from error
    if self.layout not in (layouts.RGB, None):
      pixels = self.layout.fit(pixels)
    elif self.header is None and self.layout:
      self.layout.check(pixels.shape[-1], pixels.dtype)
    if alpha and pixels.shape[-1] == 3:
      pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA)
    return pixels, halvings

  def _least_halvings(self, max_pixels):
    """How often it has to be halved for its size; ValueError if it is too large."""
    jpeg = self.header is not None and self.header.format == "JPEG"
    count = self.height * self.width
    if count > max_pixels * (JPEG_FACTOR if jpeg else 1):
      times = f"{JPEG_FACTOR} times, for a JPEG, " if jpeg else ""
      raise ValueError(
        f"{self.width}x{self.height} pixels are more than {times}the limit of"
        f" max_pixels={max_pixels}; raise it, or shrink the image"
      )
    if self.array:
      size = self.array.channels * self.array.dtype.itemsize
      if size * count > ARRAY_BYTES * max_pixels:
        raise ValueError(
          f"{self.width}x{self.height} pixels of {size} bytes are more than"
          f" {ARRAY_BYTES} for each of max_pixels={max_pixels}; raise it, or cut the"
          " image into tiles"
        )
    halvings = 0
    while jpeg and halvings < MAX_HALVINGS and count > MAX_PIXELS * 4**halvings:
      halvings += 1
    return halvings

  def _decode(self, halvings, least, alpha):
    """As `decode`, but with alpha only where that is free."""
    if self.array:
      return self.array.read(), 0
    if self.layout and self.layout != layouts.RGB:
      alpha = False
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
        pixels, halvings = _decode_by_pillow(self.header, least, self.layout), least
    else:
      pixels, halvings = _decode_by_pillow(self.header, least, self.layout), least
    if self.header.orientation > 1:
      pixels = UPRIGHT[self.header.orientation](pixels)
    return pixels, halvings


def probe(
  image: bytes | np.ndarray, layout: layouts.Layout | None = layouts.RGB
) -> Probed:
  """Reads the header of an image; layout: as of `decode`.

  Raises:
    ValueError: as `decode`; some damage shows only when it is decoded.
    UserError: as `decode`.
  """
  if isinstance(image, np.ndarray):
    return Probed(*image.shape[:2], layout=layout, pixels=image)
  if not image:
    raise ValueError("zero bytes")
  if arrays.is_array(image):
    stored = arrays.probe(image, layout and layout.channels)
    return Probed(stored.height, stored.width, layout=layout, array=stored)
  header = headers.read(image)
  sides = header.height, header.width
  if header.orientation >= 5:
    sides = header.width, header.height
  return Probed(*sides, frames=header.frames, layout=layout, header=header)


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


def _decode_by_pillow(
  header: headers.Header, halvings: int, layout: layouts.Layout | None
) -> np.ndarray:
  """Decodes any of FORMATS, not yet upright: to RGB, or as it is for other layouts."""
  if header.depth == 16:
    if layout is None or layout.dtype != "uint8":
      return depth.read(functools.partial(_open, header))[0]
    return _to_rgb(depth.to_8_bits(functools.partial(_open, header)))
  with _open(header) as opened:
    if halvings:
      step = 2**halvings
      opened.draft(None, (header.width // step, header.height // step))
    if layout and layout.channels == 4 and opened.mode == "RGBA":
      return np.asarray(opened)  # of which the fourth may be infrared
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
