"""16-bit images keep what can be seen of them, whatever bits they use."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dinojax.data import images


def png(values, color, transparent=b""):
  """A 16-bit PNG. values: uint16 [H, W, C]; color: PNG's number of its kind."""

  def chunk(name, content):
    crc = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + crc

  height, width, channels = values.shape
  rows = values.astype(">u2").view(np.uint8).reshape(height, width * channels * 2)
  rows = np.pad(rows, [(0, 0), (1, 0)])
  header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
  return b"".join(
    [
      b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header),
      chunk(b"tRNS", transparent) if transparent else b"",
      chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b""),
    ]
  )


KINDS = {"grey": (0, 1), "RGB": (2, 3), "grey, alpha": (4, 2), "RGB, alpha": (6, 4)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_highest_8_bits_in_use_remain(kind, bits):
  color, channels = KINDS[kind]
  rng = np.random.default_rng(0)
  values = rng.integers(0, 1 << bits, (12, 10, channels), np.uint16)
  values[0, 0] = (1 << bits) - 1
  if channels % 2 == 0:
    values[..., -1] = 65535  # opaque
  pixels = images.decode(png(values, color))
  colors = values[..., : 1 if channels < 3 else 3] >> (bits - 8)
  np.testing.assert_array_equal(pixels, np.broadcast_to(colors, (12, 10, 3)))


def test_an_image_between_two_depths_is_scaled_as_the_deeper_one():
  values = np.array([[[300], [700]]], np.uint16)  # 9 and 10 bits
  assert images.decode(png(values, 0))[0, :, 0].tolist() == [300 >> 2, 700 >> 2]


def test_a_black_image_stays_black():
  for color, channels in ((0, 1), (2, 3)):
    values = np.zeros((2, 2, channels), np.uint16)
    assert (images.decode(png(values, color)) == 0).all()


@pytest.mark.parametrize("kind", ["grey", "RGB"])
def test_one_value_or_colour_is_transparent(kind):
  color, channels = KINDS[kind]
  values = np.full((1, 3, channels), 0x0300, np.uint16)
  values[0, 1] = 0x0301  # differs in its low byte
  key = struct.pack(f">{channels}H", *[0x0301] * channels)
  grey = 0x0300 >> 2
  assert images.decode(png(values, color, key))[0, :, 0].tolist() == [grey, 255, grey]


def test_alpha_of_12_bits_is_opaque_where_it_is_largest():
  values = np.array([[[4095, 0, 0, 4095], [4095, 0, 0, 0]]], np.uint16)
  assert images.decode(png(values, 6)).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_what_pillow_writes_is_read_as_it_was_meant():
  grey = np.arange(0, 65536, 251, np.uint16)[:256].reshape(16, 16)
  file = io.BytesIO()
  Image.fromarray(grey).save(file, "PNG")
  pixels = images.decode(file.getvalue())
  np.testing.assert_array_equal(pixels[..., 0], grey >> 8)
  np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])
