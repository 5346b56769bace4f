"""Depth maps of files: 16-bit PNG with a scale, or NumPy arrays of metres.

A record's "depth_map" is float32 [H, W], metres. It lies over the whole upright image,
whatever the sizes of both. Values that are 0, negative or no number are unknown.
"""

import io

import numpy as np
from PIL import PngImagePlugin

from dinojax.data import headers

ENDINGS = (".png", ".npy")
MODES = ("I;16", "I", "L")  # of Pillow: 16 bits, or 8
# Where the error of a depth map is measured: rows and columns of NYU's 480 x 640 that
# Eigen et al. (arXiv:1406.2283) keep.
EIGEN = (45 / 480, 471 / 480), (41 / 640, 601 / 640)
CROPS = ("none", "eigen")


def decode(stored: bytes, *, name: str, scale: float, max_pixels: int) -> np.ndarray:
  """Metres, float32 [H, W].

  Args:
    stored: the file's content.
    name: of the file; its ending says what it is.
    scale: metres of one unit of a PNG.
    max_pixels: larger maps are refused.

  Raises:
    ValueError: it is neither, damaged, over the limit, or not of one channel.
  """
  if not stored:
    raise ValueError("its depth map has zero bytes")
  try:
    if name.lower().endswith(".npy"):
      return _of_array(stored, max_pixels)
    header = headers.read(stored)
    if header.format != "PNG":
      raise ValueError(f"it is a {header.format}; give a PNG or a .npy")
    _check_size((header.height, header.width), max_pixels)
    with PngImagePlugin.PngImageFile(io.BytesIO(header.body)) as opened:
      if opened.mode not in MODES:
        raise ValueError(f"it is {opened.mode}; give a grey PNG of 16 bits")
      return np.asarray(opened).astype(np.float32) * np.float32(scale)
  except Exception as error:  # Pillow and NumPy raise a dozen types on damaged bytes
    reason = " ".join(str(error).split()) or type(error).__name__
    raise ValueError(f"its depth map cannot be read: {reason}") from error


def inside(shape: tuple[int, int], crop: str) -> np.ndarray:
  """Which pixels of a map a crop keeps, bool [H, W].

  Args:
    shape: (H, W).
    crop: of CROPS; "eigen" is in proportion for other sizes than 480 x 640.
  """
  found = np.ones(shape, bool)
  if crop == "eigen":
    (top, bottom), (left, right) = EIGEN
    found[:] = False
    rows = slice(round(top * shape[0]), round(bottom * shape[0]))
    found[rows, round(left * shape[1]) : round(right * shape[1])] = True
  return found


def _of_array(stored: bytes, max_pixels: int) -> np.ndarray:
  file = io.BytesIO(stored)
  version = np.lib.format.read_magic(file)
  read = {(1, 0): np.lib.format.read_array_header_1_0}
  shape, _, dtype = read.get(version, np.lib.format.read_array_header_2_0)(file)
  if len(shape) != 2 or dtype.kind != "f":
    raise ValueError(f"it is {dtype} {list(shape)}; give floats [H, W], in metres")
  _check_size(shape, max_pixels)
  values = np.load(io.BytesIO(stored), allow_pickle=False)
  return values.astype(np.float32)


def _check_size(shape: tuple[int, int], max_pixels: int) -> None:
  if shape[0] * shape[1] > max_pixels:
    size = f"{shape[1]}x{shape[0]} pixels"
    raise ValueError(f"{size} are more than max_pixels={max_pixels}")
