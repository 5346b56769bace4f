"""Layout of a run's images: how many channels they have, and of which type.

Images of one run or network are all alike: RGB of 8 bits, as most are, or any other
number of channels of 8-bit, 16-bit or floating-point values. 8-bit pictures, such as
JPEG, become grey where one channel is wanted. Nothing else is converted: a record of
another layout is a corrupt record, since its values would mean something else.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np


class Layout(NamedTuple):
  """Images are [H, W, channels] of dtype, "uint8", "uint16" or "float32"."""

  channels: int = 3
  dtype: str = "uint8"

  def check(self, channels: int, dtype: np.dtype) -> None:
    """Raises ValueError, on one line, if an image of these cannot be read as such.

    Floating-point images are made of any numbers, the others of their own type alone.
    """
    kind = np.dtype(dtype)
    fits = kind.kind in "iuf" if self.dtype == "float32" else kind.name == self.dtype
    if channels != self.channels or not fits:
      raise ValueError(
        f"{channels} channel{'s' * (channels > 1)} of {kind.name}, where"
        f" config.data.channels={self.channels} and"
        f" config.backbone.image_dtype={self.dtype}, or the weights, ask for others;"
        " set them to those of your images"
      )

  def fit(self, pixels: np.ndarray) -> np.ndarray:
    """Pixels [H, W, C] in this layout; ValueError if they are of another one."""
    if self == (1, "uint8") and pixels.shape[-1] == 3 and pixels.dtype == np.uint8:
      return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    self.check(pixels.shape[-1], pixels.dtype)
    pixels = pixels.astype(self.dtype, copy=False)
    if self.dtype == "float32" and not np.isfinite(pixels).all():
      raise ValueError("values that are not finite (NaN or infinite)")
    return pixels


RGB = Layout()


def of(backbone: Any) -> Layout:
  """The layout of a network's images.

  Args:
    backbone: `config.backbone`, or a VisionTransformer, which has its fields.
  """
  return Layout(len(backbone.mean), backbone.image_dtype)
