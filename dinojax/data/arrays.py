"""Images that are stored as arrays: NumPy's .npy, and TIFF of any number of bands.

An array [H, W] has one channel. In .npy channels come last, [H, W, C]; [C, H, W] is
recognised where the first axis has the number of channels that is wanted and the last
one has not. A TIFF says itself which axis is which. Values are read as they are: what
they mean is said by `config.backbone.max_value`.

TIFF is read by tifffile, which is imported where it is needed.
"""

import dataclasses
import functools
import io
import logging
import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
from PIL import Image

from dinojax import channels as limits
from dinojax import errors

NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
INSTALL = "pip install 'dinojax[channels]'"


@dataclasses.dataclass(frozen=True)
class Stored:
  """An array whose header is read. read: () -> values [height, width, channels]."""

  height: int
  width: int
  channels: int
  dtype: np.dtype
  read: Callable[[], np.ndarray]


def is_array(image: bytes) -> bool:
  """Whether the bytes begin as a .npy or a TIFF does."""
  return image.startswith((NPY, *TIFF))


def probe(image: bytes, channels: int | None) -> Stored:
  """Reads the header of a .npy or TIFF.

  Args:
    image: all of the file.
    channels: how many are wanted, by which [C, H, W] of a .npy is recognised; None: any
      number that a run may have.

  Raises:
    ValueError: damaged, or no image. The message is one line.
    UserError: tifffile is not installed.
  """
  npy = image.startswith(NPY)
  try:
    shape, order, dtype, read = _npy(image, channels) if npy else _tiff(image)
  except errors.UserError:
    raise
  except Exception as error:  # tifffile raises many types on damaged bytes
    kind = "NumPy array" if npy else "TIFF"
    reason = " ".join(str(error).split()) or type(error).__name__
    raise ValueError(f"damaged {kind}: {reason}") from error
  if order is None or min(shape) < 1:
    raise ValueError(f"an array {list(shape)} is no image; give [H, W] or [H, W, C]")
  height, width, *rest = (shape[axis] for axis in order)

  def pixels():
    values = read().transpose(order).reshape(height, width, -1)
    return np.ascontiguousarray(values, values.dtype.newbyteorder("="))

  return Stored(height, width, *(rest or [1]), dtype, pixels)


def _npy(image, channels):
  """Shape, axes in the order of an image's, type and reader of a .npy."""
  file = io.BytesIO(image)
  version = np.lib.format.read_magic(file)
  header = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }[version]
  shape, fortran, dtype = header(file)
  count, start = math.prod(shape), file.tell()
  if dtype.hasobject or len(image) - start < count * dtype.itemsize:
    raise ValueError("objects" if dtype.hasobject else "it is cut off")

  def read():
    values = np.frombuffer(image, dtype, count, start)
    return values.reshape(shape, order="F" if fortran else "C")

  orders = {2: (0, 1), 3: (1, 2, 0) if _first(shape, channels) else (0, 1, 2)}
  return shape, orders.get(len(shape)), dtype, read


def _first(shape, channels):
  """Whether channels can only come first."""
  if channels is None:
    return shape[0] <= limits.MOST < shape[-1]
  return shape[0] == channels != shape[-1]


def _tiff(image):
  """Likewise of the first image, or stack of bands, in a TIFF."""
  tifffile = import_tifffile()
  with tifffile.TiffFile(io.BytesIO(image)) as file:
    series = file.series[0]
    axes, shape, dtype = series.axes, series.shape, series.dtype
    for page in series.pages:  # tifffile would fill, one by one, millions that lack
      if page is None or len(page.dataoffsets) < math.prod(page.chunked):
        raise ValueError("some of its strips or tiles are missing")

  def read():
    with tifffile.TiffFile(io.BytesIO(image)) as file:
      values = file.series[0].asarray(maxworkers=1)
    if values.shape != shape:
      raise ValueError(f"its sizes contradict each other: {values.shape}")
    return values.squeeze(flat)

  flat = tuple(i for i, n in enumerate(shape) if n == 1 and axes[i] not in "YX")
  left = [axis for i, axis in enumerate(axes) if i not in flat]
  shape_left = tuple(n for i, n in enumerate(shape) if i not in flat)
  if len(left) > 3 or not {"Y", "X"} <= set(left):
    return shape_left, None, dtype, read
  bands = [i for i, axis in enumerate(left) if axis not in "YX"]
  order = (left.index("Y"), left.index("X"), *bands)
  return shape_left, order, dtype, read


@functools.cache
def import_tifffile() -> ModuleType:
  """The package; UserError if it is not installed."""
  try:
    import tifffile
  except ModuleNotFoundError as error:
    raise errors.UserError(f"TIFF images need tifffile: {INSTALL}") from error
  # What is wrong with a file is the reason of a corrupt record, and said there.
  logging.getLogger("tifffile").setLevel(logging.CRITICAL)
  return tifffile


def resized(
  pixels: np.ndarray,
  size: tuple[int, int],
  box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
  """Resizes [H, W, C] by antialiased bicubic, as Pillow does it.

  Args:
    pixels: uint8, uint16 or float32.
    size: (width, height) of the result.
    box: (left, top, right, bottom) of the part that is resized; None: all.
  """
  kind = Image.Resampling.BICUBIC
  if pixels.dtype == np.uint8 and pixels.shape[-1] == 3:
    return np.asarray(Image.fromarray(pixels).resize(size, kind, box))
  # Pillow's images of four channels are not resized channel by channel.
  whole = pixels.dtype != np.float32
  planes = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
  planes = [
    np.asarray(Image.fromarray(np.ascontiguousarray(x)).resize(size, kind, box))
    for x in np.moveaxis(planes, -1, 0)
  ]
  made = np.stack(planes, axis=-1)
  if whole and pixels.dtype != np.uint8:
    made = np.rint(made).clip(0, np.iinfo(pixels.dtype).max)
  return made.astype(pixels.dtype, copy=False)


def shown(pixels: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
  """A picture of [..., C] for people: uint8 [..., 3]; 8-bit RGB stays as it is.

  The first three channels, or the first one as grey, each stretched between 2 and 98
  percent of its values.

  Args:
    pixels: the values.
    like: of the same channels, whose percentages are taken; None: `pixels`.
  """
  if pixels.dtype == np.uint8 and pixels.shape[-1] == 3:
    return pixels
  few = [0, 1, 2] if pixels.shape[-1] > 2 else [0, 0, 0]
  flat = (pixels if like is None else like)[..., few].reshape(-1, 3)
  low, high = np.percentile(flat.astype(np.float32), (2, 98), axis=0)
  unit = (pixels[..., few] - low) / np.where(high > low, high - low, 1)
  return np.rint(255 * unit.clip(0, 1)).astype(np.uint8, order="C")
