"""The scan drops what cannot be used, with the reason, and no sound image."""

import io

import ingest_jobs
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dinojax.curation import examine, inputs, jobs
from dinojax.data import images


def scan(image, **changes):
  """Row, reason and detail of an image, encoded or PIL's."""
  settings = ingest_jobs.make_settings(**changes)
  row, detail = examine.examine(inputs.Record(0, "x", image, -1, ""), settings)
  return row, jobs.REASONS[row["reason"]], detail


def encode(*frames, kind, **options):
  file = io.BytesIO()
  if len(frames) > 1:
    options |= {"save_all": True, "append_images": frames[1:]}
  frames[0].save(file, kind, **options)
  return file.getvalue()


@pytest.fixture
def frames(pictures):
  return [Image.fromarray(pixels) for pixels in pictures[:2]]


def test_a_photo_with_smaller_versions_of_it_is_no_animation(frames):
  small = frames[0].resize((32, 32))
  for image in (encode(frames[0], small, kind="MPO"), encode(*frames, kind="MPO")):
    row, reason, _ = scan(image)
    assert reason == "" and row["width"] == 64


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations_are_dropped_or_kept_as_asked(frames, kind):
  image = encode(*frames, kind=kind)
  _, reason, detail = scan(image)
  assert (reason, detail) == ("animated", "2 frames; see --animated")
  assert scan(image, animated=True)[1] == ""
  assert scan(encode(frames[0], kind=kind))[1] == ""


def test_limits_name_themselves(frames):
  image = encode(frames[0].resize((64, 16)), kind="PNG")
  _, reason, detail = scan(image, max_pixels=1000)
  assert reason == "too many pixels"
  assert detail == "64x16 pixels, over --max_pixels=1000"
  small = "too small", "64x16 pixels, under --min_side=17"
  assert scan(image, min_side=17)[1:] == small
  elongated = "too elongated", "64x16 pixels, over --max_aspect=3.9"
  assert scan(image, max_aspect=3.9)[1:] == elongated
  assert scan(image, max_aspect=0)[1] == scan(image, max_aspect=4)[1] == ""


@pytest.mark.parametrize(
  ("image", "detail"),
  [
    (b"", "zero bytes"),
    (b"<html>404</html>", "cannot identify"),
    ("truncated", "damaged PNG"),
  ],
)
def test_what_cannot_be_read_has_a_reason_on_one_line(frames, image, detail):
  if image == "truncated":
    image = encode(frames[0], kind="PNG")[:500]
  _, reason, found = scan(image)
  assert reason == "unreadable"
  assert detail in found and "\n" not in found


def test_a_large_jpeg_is_scanned_and_shrunk_at_a_fraction_of_its_size(
  frames, monkeypatch
):
  monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64 // 2)
  jpeg = encode(frames[0], kind="JPEG")
  row, reason, _ = scan(jpeg, shorter_side=16)
  assert reason == ""
  assert (row["width"], row["height"]) == (64, 64)
  settings = ingest_jobs.make_settings(shorter_side=16)
  shrunk = images.decode(examine.shrunk(jpeg, settings))
  assert shrunk.shape == (16, 16, 3)
  grey = np.asarray(Image.fromarray(shrunk).convert("L"), int)  # JPEG halves colours
  expected = frames[0].convert("L").resize((16, 16), Image.Resampling.BOX)
  assert np.abs(grey - np.asarray(expected)).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_images_over_a_decoders_default_limit_are_kept_and_shrunk(
  frames, monkeypatch, kind
):
  image = encode(frames[0], kind=kind)
  monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64 // 2)
  for shorter_side, side in ((0, 64), (16, 16)):
    settings = ingest_jobs.make_settings(shorter_side=shorter_side, max_pixels=64 * 64)
    assert scan(image, max_pixels=64 * 64, shorter_side=shorter_side)[1] == ""
    width, height = Image.open(io.BytesIO(examine.shrunk(image, settings))).size
    assert (width, height) == (side, side)


def test_metadata_that_cannot_be_read_drop_no_image(frames):
  large = PngImagePlugin.PngInfo()
  large.add_text("Comment", "x" * 2_000_000, zip=True)
  found = [
    scan(encode(frames[0], kind="PNG", **options))
    for options in ({}, {"exif": b"Exif\0\0garbage!"}, {"pnginfo": large})
  ]
  assert [reason for _, reason, _ in found] == [""] * 3
  assert len({row["pixels"].tobytes() for row, _, _ in found}) == 1


def test_dark_images_of_12_bits_are_no_duplicates_of_each_other():
  values = np.random.default_rng(0).integers(0, 1 << 12, (2, 64, 64)).astype(np.uint16)
  a, b = (scan(encode(Image.fromarray(grey), kind="PNG"))[0] for grey in values)
  assert a["pixels"].tobytes() != b["pixels"].tobytes()
  assert a["thumb"].mean() > 90


@pytest.mark.parametrize(
  ("width", "height"), [(100, 40), (40, 100), (37, 333), (50, 20)]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_shrunk_images_have_the_shorter_side(width, height, kind):
  image = encode(Image.new("RGB", (width, height), "red"), kind=kind)
  short = examine.shrunk(image, ingest_jobs.make_settings(shorter_side=20))
  shape = images.decode(short).shape[:2]
  assert min(shape) == 20
  ratio = min(width, height) / 20
  assert max(shape) == round(max(width, height) / ratio)
  assert (short == image) == (min(width, height) == 20)


def test_rotation_counts_in_size_and_shrinking(frames):
  exif = Image.Exif()
  exif[0x0112] = 6
  image = encode(frames[0].resize((64, 32)), kind="JPEG", exif=exif)
  row, _, _ = scan(image)
  assert (row["width"], row["height"]) == (32, 64)
  short = examine.shrunk(image, ingest_jobs.make_settings(shorter_side=16))
  assert images.decode(short).shape == (32, 16, 3)


def test_arrays_of_any_channels_are_scanned_and_stay_as_they_are():
  pixels = np.random.default_rng(0).integers(0, 9_000, (40, 48, 13)).astype(np.uint16)
  files = [io.BytesIO() for _ in range(3)]
  np.save(files[0], pixels)
  np.save(files[1], np.asfortranarray(pixels))
  np.save(files[2], np.moveaxis(pixels, -1, 0))
  rows = [scan(file.getvalue()) for file in files]
  assert [reason for _, reason, _ in rows] == [""] * 3
  for row, _, _ in rows:
    assert (row["height"], row["width"]) == (40, 48)
    np.testing.assert_array_equal(row["pixels"], rows[0][0]["pixels"])
    assert row["hash"] == rows[0][0]["hash"]
  settings = ingest_jobs.make_settings(shorter_side=20)
  assert examine.shrunk(files[0].getvalue(), settings) == files[0].getvalue()
