"""Records with a map of their pixels: image and map, decoded and checked together.

A kind of maps says how to read them: of classes, or of depth. All have a value FILL for
pixels that count nowhere.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from dinojax.data import depth_maps, headers, images, label_maps, layouts


@dataclasses.dataclass(frozen=True)
class LabelMaps:
  """Maps of classes, see label_maps.py. num_classes: larger values are corrupt."""

  num_classes: int
  max_pixels: int = images.MAX_PIXELS
  layout: layouts.Layout = layouts.RGB
  FILL: ClassVar = label_maps.IGNORE
  DTYPE: ClassVar = np.uint8

  def read(self, record: dict) -> tuple[np.ndarray, np.ndarray]:
    """Image [H, W, C] and map [h, w]; one of sources.UNREADABLE if unsound."""
    pixels = _image(record, self)
    return pixels, self.values(record, *pixels.shape[:2])

  def values(self, record: dict, height: int, width: int) -> np.ndarray:
    """The map [h, w], which lies over an image of height x width pixels.

    Raises:
      ValueError: it cannot be decoded, has other classes, or does not fit the image.
    """
    found = label_maps.decode(record["label_map"], max_pixels=self.max_pixels)
    label_maps.check_values(found, self.num_classes)
    label_maps.check_shape(found, height, width)
    return found

  def shape(self, record: dict) -> tuple[int, int]:
    """(h, w) of the map, by its header alone."""
    stored = record["label_map"]
    if isinstance(stored, np.ndarray):
      return stored.shape
    header = headers.read(stored)
    return header.height, header.width


@dataclasses.dataclass(frozen=True)
class DepthMaps:
  """Maps of metres. low, high: range that counts; crop: of depth_maps.CROPS."""

  low: float
  high: float
  crop: str = "none"
  max_pixels: int = images.MAX_PIXELS
  layout: layouts.Layout = layouts.RGB
  FILL: ClassVar = 0.0
  DTYPE: ClassVar = np.float32

  def read(self, record: dict) -> tuple[np.ndarray, np.ndarray]:
    """Image [H, W, C] and map [h, w]; one of sources.UNREADABLE if unsound."""
    metres = record["depth_map"]
    pixels = _image(record, self)
    label_maps.check_shape(metres, *pixels.shape[:2])
    counts = (metres >= self.low) & (metres <= self.high)  # NaN does neither
    counts &= depth_maps.inside(metres.shape, self.crop)
    return pixels, np.where(counts, metres, np.float32(self.FILL))

  def shape(self, record: dict) -> tuple[int, int]:
    """(h, w) of the map."""
    return record["depth_map"].shape


Kind = LabelMaps | DepthMaps


def _image(record: dict, kind: Kind) -> np.ndarray:
  """The image of a record."""
  how = dict(max_pixels=kind.max_pixels, layout=kind.layout)
  return images.decode(record["image"], **how)
