"""Label maps are read as stored, laid over their images, and counted by patches."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dinojax.data import label_maps


def png(values, mode="L"):
  file = io.BytesIO()
  image = Image.fromarray(np.asarray(values, np.uint8))
  if mode == "P":
    image.putpalette(np.random.default_rng(0).integers(256, size=768).tolist())
  image.save(file, "PNG")
  return file.getvalue()


def raw_png(row, *, width, depth, color):
  """A PNG of one row of packed values, of any depth; color: 0 grey, 3 palette."""

  def chunk(name, data):
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

  chunks = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, color, 0, 0, 0))
  chunks += chunk(b"PLTE", bytes(48)) if color == 3 else b""
  chunks += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + chunks


VALUES = np.arange(12).reshape(3, 4) * 20


@pytest.mark.parametrize("mode", ["L", "P"])
def test_grey_and_palette_pngs_have_their_values_as_stored(mode):
  assert np.array_equal(label_maps.decode(png(VALUES, mode)), VALUES)


@pytest.mark.parametrize(
  ("row", "width", "depth", "wanted"),
  [
    (b"\xa0", 3, 1, [1, 0, 1]),
    (b"\x1b", 4, 2, [0, 1, 2, 3]),
    (b"\x0f", 2, 4, [0, 15]),
  ],
)
@pytest.mark.parametrize("color", [0, 3])
def test_few_bits_are_not_spread_over_a_byte(row, width, depth, wanted, color):
  stored = raw_png(row, width=width, depth=depth, color=color)
  assert label_maps.decode(stored).tolist() == [wanted]


def jpeg():
  file = io.BytesIO()
  Image.new("L", (4, 4)).save(file, "JPEG")
  return file.getvalue()


@pytest.mark.parametrize(
  ("stored", "message"),
  [
    (b"", "its label map has zero bytes"),
    (b"GIF", "its label map cannot be read: cannot identify a JPEG, PNG"),
    (jpeg(), "its label map cannot be read: it is a JPEG; give a PNG"),
    (png(np.zeros((2, 2, 3))), "it is RGB of 8 bits; give a palette or grey PNG, 8 bi"),
    (raw_png(bytes(4), width=2, depth=16, color=0), "it is I;16 of 16 bits; give a pa"),
    (png(VALUES)[:-30], "its label map cannot be read: "),
    (png(np.zeros((20, 20))), "20x20 pixels are more than max_pixels=300"),
  ],
)
def test_what_is_no_label_map_is_one_line(stored, message):
  with pytest.raises(ValueError) as raised:
    label_maps.decode(stored, max_pixels=300)
  assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
  ("shape", "size", "fits"),
  [
    ((30, 40), (30, 40), True),
    ((30, 40), (480, 640), True),
    ((33, 50), (333, 500), True),  # halved, rounded
    ((40, 30), (30, 40), False),  # turned
    ((512, 512), (500, 375), False),
    ((500, 375), (500, 390), False),
  ],
)
def test_a_map_of_another_size_lies_over_its_image_and_one_of_another_shape_does_not(
  shape, size, fits
):
  if fits:
    label_maps.check_shape(np.zeros(shape), *size)
    return
  with pytest.raises(ValueError, match=r"is of another shape than the upright image"):
    label_maps.check_shape(np.zeros(shape), *size)


@pytest.mark.parametrize(("height", "width", "side"), [(3, 5, 7), (8, 6, 4), (4, 4, 4)])
def test_a_pixel_of_the_square_has_the_class_at_its_centre(height, width, side):
  label_map = np.arange(height * width, dtype=np.uint8).reshape(height, width)
  square = label_maps.to_square(label_map, side)
  for i in range(side):
    for j in range(side):
      place = int((i + 0.5) / side * height), int((j + 0.5) / side * width)
      assert square[i, j] == label_map[place]


def test_values_beyond_the_classes_are_refused_but_for_the_one_to_ignore():
  label_maps.check_values(np.array([[0, 4, 255]], np.uint8), 5)
  with pytest.raises(ValueError, match="has the value 9, and classes end at 4"):
    label_maps.check_values(np.array([[9, 4, 255]], np.uint8), 5)


def test_pixels_of_each_class_are_counted_by_patch_row_by_row():
  rng = np.random.default_rng(0)
  square = rng.choice([0, 1, 4, 255], size=(12, 12)).astype(np.uint8)
  counts = label_maps.patch_counts(square, patch_size=4, num_classes=5)
  assert counts.shape == (9, 5)
  for n in range(9):
    rows, columns = slice(n // 3 * 4, n // 3 * 4 + 4), slice(n % 3 * 4, n % 3 * 4 + 4)
    for c in range(5):
      assert counts[n, c] == (square[rows, columns] == c).sum()


def test_rare_classes_are_kept_and_patches_without_a_label_never():
  counts = np.zeros((50, 3), int)
  counts[:40, 0] = 16  # background
  counts[40:42, 2] = 3
  kept = [label_maps.choose(counts, 8, np.random.default_rng(i)) for i in range(200)]
  assert all(len(x) == 8 and (np.diff(x) > 0).all() and x.max() < 42 for x in kept)
  # 2 of 42 patches, and yet in nearly all choices of 8.
  assert np.mean([(x >= 40).sum() for x in kept]) > 1.7
  assert len({tuple(x) for x in kept}) > 100
  all_of_them = label_maps.choose(counts, 50, np.random.default_rng(0))
  assert all_of_them.tolist() == list(range(42))
