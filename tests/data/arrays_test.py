"""NumPy arrays and TIFF as images: their axes, their values, and what is refused."""

import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from dinojax import errors
from dinojax.data import arrays, bad_records, images, layouts, sources

BANDS = layouts.Layout(13, "uint16")


def npy(array, **options):
  file = io.BytesIO()
  np.save(file, array, **options)
  return file.getvalue()


def tiff(array, **options):
  tifffile = pytest.importorskip("tifffile")
  file = io.BytesIO()
  tifffile.imwrite(file, array, **options)
  return file.getvalue()


def noise(*shape, dtype=np.uint16, seed=0):
  return np.random.default_rng(seed).integers(0, 10_000, shape).astype(dtype)


def decode(data, layout=BANDS):
  return images.decode(data, layout=layout)


@pytest.mark.parametrize("stored", ["<u2", ">u2"])
def test_channels_of_an_array_come_last_or_first_where_that_is_clear(stored):
  wanted = noise(5, 7, 13)
  last, first = wanted.astype(stored), np.moveaxis(wanted, -1, 0).astype(stored)
  for array in (last, first, np.asfortranarray(last)):
    found = decode(npy(array))
    assert found.dtype == np.uint16 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, wanted)
  square = noise(13, 6, 13)  # could be either: channels come last
  np.testing.assert_array_equal(decode(npy(square)), square)
  grey = noise(4, 6)
  np.testing.assert_array_equal(
    decode(npy(grey), layouts.Layout(1, "uint16"))[..., 0], grey
  )


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_a_tiff_says_which_axis_is_which(options):
  wanted = noise(16, 32, 13)
  first = np.moveaxis(wanted, -1, 0)
  contiguous = dict(photometric="minisblack", planarconfig="contig")
  separate = dict(photometric="minisblack", planarconfig="separate")
  for data in (
    tiff(wanted, **contiguous, **options),
    tiff(first, **separate, **options),
    tiff(first, photometric="minisblack", **options),  # a page for each
  ):
    np.testing.assert_array_equal(decode(data), wanted)
  probed = images.probe(data, BANDS)
  assert (probed.height, probed.width) == (16, 32)


def test_a_tiff_of_one_band_and_one_of_rgb_are_read_as_such():
  grey, rgb = noise(16, 32), noise(16, 32, 3, dtype=np.uint8)
  found = decode(tiff(grey), layouts.Layout(1, "uint16"))
  np.testing.assert_array_equal(found[..., 0], grey)
  np.testing.assert_array_equal(images.decode(tiff(rgb, photometric="rgb")), rgb)


def test_floating_point_images_take_any_numbers_that_are_finite():
  layout = layouts.Layout(2, "float32")
  for dtype in (np.float64, np.float16, np.int16, np.uint8):
    array = noise(4, 4, 2, dtype=dtype)
    found = decode(npy(array), layout)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array.astype(np.float32))
  array = np.full((4, 4, 2), np.nan)
  with pytest.raises(ValueError, match=r"^values that are not finite \(NaN or"):
    decode(npy(array), layout)


def test_a_png_of_16_bits_keeps_them_where_16_are_wanted():
  values = noise(6, 8)
  file = io.BytesIO()
  Image.fromarray(values).save(file, "PNG")
  found = decode(file.getvalue(), layouts.Layout(1, "uint16"))
  np.testing.assert_array_equal(found[..., 0], values)
  assert images.decode(file.getvalue()).shape == (6, 8, 3)


def test_pictures_become_grey_where_one_channel_is_wanted_and_keep_a_fourth():
  rgba = noise(6, 8, 4, dtype=np.uint8)
  file = io.BytesIO()
  Image.fromarray(rgba).save(file, "PNG")
  four = decode(file.getvalue(), layouts.Layout(4, "uint8"))
  np.testing.assert_array_equal(four, rgba)
  rgb = io.BytesIO()
  Image.fromarray(rgba[..., :3]).save(rgb, "PNG")
  grey = decode(rgb.getvalue(), layouts.Layout(1, "uint8"))
  luma = rgba[..., :3].astype(np.float64) @ (0.299, 0.587, 0.114)
  assert grey.shape == (6, 8, 1) and np.abs(grey[..., 0] - luma).max() <= 0.51


def asked(found, channels, dtype):
  return (
    f"{found}, where config.data.channels={channels} and config.backbone.image_dtype="
    f"{dtype}, or the weights, ask for others; set them to those of your images"
  )


@pytest.mark.parametrize(
  ("data", "layout", "message"),
  [
    (npy(noise(4, 4, 12)), BANDS, asked("12 channels of uint16", 13, "uint16")),
    (npy(noise(4, 4)), BANDS, asked("1 channel of uint16", 13, "uint16")),
    (
      npy(noise(4, 4, 13, dtype=np.uint8)),
      BANDS,
      asked("13 channels of uint8", 13, "uint16"),
    ),
    (npy(noise(4, 4, 3)), layouts.RGB, asked("3 channels of uint16", 3, "uint8")),
    (
      npy(np.zeros((4, 4, 2), bool)),
      layouts.Layout(2, "float32"),
      asked("2 channels of bool", 2, "float32"),
    ),
    (
      npy(noise(2, 3, 4, 13)),
      BANDS,
      "an array [2, 3, 4, 13] is no image; give [H, W] or [H, W, C]",
    ),
    (
      npy(noise(0, 4, 13)),
      BANDS,
      "an array [0, 4, 13] is no image; give [H, W] or [H, W, C]",
    ),
    (npy(noise(4, 4, 13))[:-1], BANDS, "damaged NumPy array: it is cut off"),
    (
      npy(np.array([[{}]]), allow_pickle=True),
      BANDS,
      "damaged NumPy array: objects",
    ),
  ],
)
def test_a_record_of_another_layout_or_a_damaged_one_is_one_line(data, layout, message):
  with pytest.raises(ValueError) as caught:
    decode(data, layout)
  assert str(caught.value) == message


def test_damaged_tiff_files_are_one_line(caplog):
  data = tiff(noise(16, 16, 13), photometric="minisblack", planarconfig="contig")
  for damaged in (data[:6], data[: len(data) // 2], data[:8] + bytes(len(data) - 8)):
    with pytest.raises(ValueError, match=r"^(damaged (TIFF|array)|an array)") as caught:
      decode(damaged)
    assert "\n" not in str(caught.value)
  assert not caplog.records


def test_a_tiff_that_lacks_strips_is_refused_before_it_is_read():
  """One that says it has a million rows, and has strips for 16."""
  options = dict(photometric="minisblack", planarconfig="separate", rowsperstrip=1)
  data = bytearray(tiff(noise(13, 16, 16), metadata=None, **options))
  tag = struct.pack("<HHII", 257, 4, 1, 16)  # ImageLength
  place = data.index(tag)
  data[place : place + 12] = struct.pack("<HHII", 257, 4, 1, 1_000_000)
  with pytest.raises(ValueError, match=r"^damaged TIFF: some of its strips or tiles"):
    decode(bytes(data))


def test_an_array_over_the_limit_of_pixels_is_refused_before_it_is_read():
  header = npy(np.zeros((1, 1), np.uint16))[:64] + b" " * 63 + b"\n"
  with pytest.raises(ValueError, match="16x16 pixels are more than the limit of"):
    images.decode(npy(noise(16, 16, 13)), layout=BANDS, max_pixels=255)
  with pytest.raises(ValueError, match="16x16 pixels of 26 bytes are more than 16 for"):
    images.decode(npy(noise(16, 16, 13)), layout=BANDS, max_pixels=256)
  with pytest.raises(ValueError, match="damaged NumPy array"):
    decode(header)


def test_without_tifffile_one_line_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tifffile", None)
  arrays.import_tifffile.cache_clear()
  (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(12))
  message = r"^TIFF images need tifffile: pip install 'dinojax\[channels\]'$"
  with pytest.raises(errors.UserError, match=message):
    sources.open_source(f"folder:{tmp_path}", field="--images")
  with pytest.raises(errors.UserError, match=message):
    decode(b"II*\0" + bytes(12))


def test_a_folder_lists_arrays_where_it_holds_no_picture(tmp_path):
  for name in ("b/2.npy", "a/1.npy", "a/notes.txt"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(npy(noise(4, 4, 13)))
  source = sources.open_source(f"folder:{tmp_path}", field="--images")
  assert source.paths == ["a/1.npy", "b/2.npy"] and source.class_names == ("a", "b")
  (tmp_path / "a" / "1.png").write_bytes(b"")
  source = sources.open_source(f"folder:{tmp_path}", field="--images")
  assert source.paths == ["a/1.png"]


def test_where_no_record_fits_one_error_names_field_value_and_the_reason(tmp_path):
  for i in range(3):
    (tmp_path / f"{i}.npy").write_bytes(npy(noise(4, 4, 12)))
  source = sources.open_source(f"folder:{tmp_path}", field="config.data.sources[0]")
  reason = asked("12 channels of uint16", 13, "uint16")
  message = (
    f'config.data.sources[0]="folder:{tmp_path}": {tmp_path}/1.npy is corrupt ({reason}'
    "), and so are 15 records tried in its place; check that these are images"
  )
  with pytest.raises(errors.UserError) as caught:
    bad_records.read_or_substitute(source, 1, make=decode)
  assert str(caught.value) == message


def test_channels_are_resized_as_those_of_rgb_and_float_as_uint8():
  rgb = noise(40, 31, 3, dtype=np.uint8)
  box = (1.5, 2.5, 30.0, 39.0)
  wanted = arrays.resized(rgb, (12, 10), box)
  four = np.concatenate([rgb, rgb[..., :1]], -1)
  found = arrays.resized(four, (12, 10), box)
  np.testing.assert_array_equal(found[..., :3], wanted)
  whole = arrays.resized(four.astype(np.uint16), (12, 10), box)
  exact = arrays.resized(four.astype(np.float32), (12, 10), box)
  np.testing.assert_array_equal(whole, np.rint(exact).clip(0, 65_535))
  assert np.abs(exact[..., :3].clip(0, 255) - wanted).max() <= 1.0
  assert (whole.dtype, exact.dtype) == (np.uint16, np.float32)


def test_pictures_for_people_show_three_channels_and_leave_rgb_alone():
  rgb = noise(4, 4, 3, dtype=np.uint8)
  assert arrays.shown(rgb) is rgb
  values = np.linspace(0, 5_000, 300).reshape(10, 10, 3).astype(np.uint16)
  shown = arrays.shown(np.concatenate([values, values], -1))
  assert shown.shape == (10, 10, 3) and shown.dtype == np.uint8
  assert shown.flags.c_contiguous  # as OpenCV wants what it draws on
  assert shown.min() == 0 and shown.max() == 255
  grey = arrays.shown(values[..., :1])
  assert (grey[..., :1] == grey).all()
