"""16-bit images to 8 bits: the highest bits that an image uses.

Cameras, microscopes and medical devices store values of 8 to 14 bits in files of 16.
The high byte of such a value is nearly black, or nothing at all.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

SENSORS = (8, 10, 12, 14, 16)  # bits of a value
# Pillow keeps the high bytes of 16-bit colours. Read as another layout, the same data
# have the low bytes, in these channels.
LOW_BYTES = {
  "RGB;16B": ("RGB;16L", [0, 1, 2]),
  "RGBA;16B": ("RGBA;16L", [0, 1, 2, 3]),
  "LA;16B": ("RGBA", [1, 1, 1, 3]),
}


def to_8_bits(open_image: Callable[[], Image.Image]) -> Image.Image:
  """Decodes a PNG of 16 bits a channel.

  The largest value of an image tells how many bits it uses, rounded up to one of
  SENSORS; the highest 8 of them remain. Colours share one scale.

  Args:
    open_image: opens the PNG, whose pixels are not read yet.

  Returns:
    RGB or RGBA.
  """
  values, transparent = read(open_image)
  colors = _high_bits(values[..., :3])
  parts = [colors] * (3 // colors.shape[-1])
  if values.shape[-1] == 4:
    parts.append(_high_bits(values[..., 3:]))
  elif transparent is not None:
    opaque = (values != transparent).any(axis=-1, keepdims=True)
    parts.append(np.where(opaque, 255, 0).astype(np.uint8))
  return Image.fromarray(np.concatenate(parts, axis=-1))


def read(open_image: Callable[[], Image.Image]) -> tuple[np.ndarray, Any]:
  """Decodes a PNG of 16 bits a channel to uint16 [H, W, C], C 1, 3 or 4.

  Also returns the value or colour that means transparent, or None.
  """
  with open_image() as opened:
    codec, box, offset, layout = opened.tile[0]
    values = np.asarray(opened)
    transparent = opened.info.get("transparency")  # one value or one colour
  if layout in LOW_BYTES:
    layout, channels = LOW_BYTES[layout]
    with open_image() as opened:
      opened.tile = [(codec, box, offset, layout)]
      low_bytes = np.asarray(opened)[..., channels]
    values = values.astype(np.uint16) << 8 | low_bytes
  else:
    values = values.astype(np.uint16)[..., None]
  return values, transparent


def _high_bits(values):
  """uint16 to uint8."""
  largest = int(values.max())
  used = next(bits for bits in SENSORS if largest < 1 << bits)
  return (values >> (used - 8)).astype(np.uint8)
