"""Every kind of image a web folder holds decodes to RGB, or says why it does not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from dinojax.data import images

# Pillow's warnings name no file, so none may come through.
pytestmark = pytest.mark.filterwarnings("error")

ORIENTATION = 0x0112
TURNED = Image.Exif()
TURNED[ORIENTATION] = 6  # upright after 90 degrees clockwise


def encode(image, kind="PNG", **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


@pytest.fixture
def picture():
  rng = np.random.default_rng(0)
  return Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_a_lossless_image_comes_back_exactly(picture, kind):
  pixels = images.decode(encode(picture, kind))
  assert pixels.dtype == np.uint8
  np.testing.assert_array_equal(pixels, picture)


def test_an_array_passes_through(picture):
  pixels = np.asarray(picture)
  assert images.decode(pixels) is pixels


@pytest.mark.parametrize(
  ("mode", "kind"),
  [
    ("1", "PNG"),
    ("L", "JPEG"),
    ("LA", "PNG"),
    ("P", "PNG"),
    ("P", "BMP"),
    ("1", "BMP"),
    ("CMYK", "JPEG"),
    ("RGBA", "WEBP"),
    ("RGB", "JPEG"),
    ("RGB", "GIF"),
  ],
)
def test_every_mode_becomes_rgb(picture, mode, kind):
  pixels = images.decode(encode(picture.convert(mode), kind))
  assert pixels.shape == (24, 32, 3)
  assert pixels.dtype == np.uint8
  assert pixels.std() > 20


def test_a_single_pixel_is_an_image():
  assert images.decode(encode(Image.new("RGB", (1, 1), "red"))).tolist() == [
    [[255, 0, 0]]
  ]


def test_inverted_cmyk_has_the_right_colours():
  # Pillow stores it as Adobe's programs do, whose values are those of light.
  red = Image.new("RGB", (16, 16), "red").convert("CMYK")
  pixels = images.decode(encode(red, "JPEG"))
  assert np.abs(pixels[8, 8].astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1"])
def test_what_is_transparent_becomes_white(mode):
  if mode in ("P", "1"):
    encoded = encode(Image.new(mode, (2, 2)), transparency=0)
  else:
    encoded = encode(Image.new(mode, (2, 2), 0))
  assert (images.decode(encoded) == 255).all()


def test_half_transparent_black_becomes_grey():
  pixels = images.decode(encode(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
  assert pixels.tolist() == [[[127, 127, 127]]]


@pytest.mark.parametrize("kind", images.FORMATS)
def test_a_truncated_image_is_refused_in_one_line(picture, kind):
  encoded = encode(picture, kind)
  for length in (13, 20, len(encoded) // 2):
    with pytest.raises(ValueError, match=f"^damaged {kind}: .+$"):
      images.decode(encoded[:length])


def test_what_is_no_image_is_refused_by_its_first_bytes():
  for damaged, reason in (
    (b"", "zero bytes"),
    (b"<!DOCTYPE html>", "cannot identify .* b'<!DOCTYPE ht'"),
    (b"RIFF\x10\0\0\0WAVEfmt ", "RIFF file of b'WAVE'"),
    (b"\xff\xd8\xff", "damaged JPEG: the header is cut off"),
    (b"BM", "damaged BMP: the header is cut off"),
    (b"GIF89a\0\0\0\0\0\0\0;", "damaged GIF: 0x0 pixels"),
  ):
    with pytest.raises(ValueError, match=reason):
      images.decode(damaged)


def test_a_damaged_byte_never_raises_anything_but_value_error(picture):
  rng = np.random.default_rng(1)
  for kind in images.FORMATS:
    encoded = np.frombuffer(encode(picture, kind), np.uint8)
    for _ in range(100):
      damaged = encoded.copy()
      damaged[rng.integers(len(damaged), size=3)] = rng.integers(256, size=3)
      try:
        pixels = images.decode(damaged.tobytes())
      except ValueError as error:
        assert "\n" not in str(error) and "object at 0x" not in str(error)
        continue
      assert pixels.ndim == 3


def test_a_format_outside_the_list_stays_shut(picture):
  with pytest.raises(ValueError, match="cannot identify"):
    images.decode(encode(picture, "EPS"))


def test_a_png_over_the_limit_is_decoded_once_the_limit_is_raised(picture):
  encoded = encode(picture)
  with pytest.raises(ValueError, match=r"32x24 pixels .* max_pixels=767; raise it"):
    images.decode(encoded, max_pixels=767)
  assert images.decode(encoded, max_pixels=768).shape == (24, 32, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": TURNED}])
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_jpeg_over_the_limit_is_decoded_at_a_fraction(monkeypatch, mode, options):
  y, x = np.mgrid[:61, :75]
  ramp = np.stack([3 * x, 4 * y, x + y], axis=-1).astype(np.uint8)
  encoded = encode(Image.fromarray(ramp).convert(mode), "JPEG", quality=95, **options)
  full = images.decode(encoded)
  size = Image.fromarray(full).size
  monkeypatch.setattr(images, "MAX_PIXELS", 61 * 75 // 8)
  probed = images.probe(encoded)
  assert (probed.width, probed.height) == size
  pixels, halved = probed.decode(max_pixels=61 * 75)
  assert halved == 2
  expected = Image.fromarray(full).reduce(4)
  assert np.abs(pixels.astype(int) - expected)[2:-2, 2:-2].mean() < 8
  with pytest.raises(ValueError, match="4 times, for a JPEG"):
    images.decode(encoded, max_pixels=61 * 75 // 4 - 1)


def test_a_phone_picture_of_100_megapixels_is_decoded_at_half_its_size():
  encoded = encode(Image.new("L", (11_500, 8_700), 99), "JPEG")
  pixels = images.decode(encoded)
  assert pixels.shape == (4_350, 5_750, 3)
  assert np.abs(pixels[::999, ::999].astype(int) - 99).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_upright_at_every_size_as_pillow_turns_it(orientation):
  rng = np.random.default_rng(0)
  coarse = Image.fromarray(rng.integers(0, 256, (5, 8, 3), np.uint8))
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  smooth = coarse.resize((128, 80), Image.Resampling.BICUBIC)
  encoded = encode(smooth, "JPEG", quality=95, exif=exif)
  upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
  probed = images.probe(encoded)
  assert (probed.width, probed.height) == upright.size
  for halvings in (0, 1, 2, 3):
    pixels, halved = probed.decode(halvings)
    assert halved == halvings
    expected = np.asarray(upright.reduce(2**halvings), np.int64)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() < 3


def test_a_side_that_halving_does_not_divide_begins_where_the_image_does():
  ramp = np.linspace(0, 255, 101).astype(np.uint8)
  image = Image.fromarray(np.broadcast_to(ramp[None, :, None], (67, 101, 3)))
  pixels, halved = images.probe(encode(image, "JPEG", quality=95)).decode(2)
  assert halved == 2 and pixels.shape == (17, 26, 3)
  means = [ramp[i : i + 4].mean() for i in range(0, 100, 4)]
  assert np.abs(pixels[8, :25, 0] - means).max() < 6


def test_what_is_no_jpeg_is_never_halved(picture):
  pixels, halved = images.probe(encode(picture)).decode(2)
  assert halved == 0
  np.testing.assert_array_equal(pixels, picture)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_alpha_adds_a_channel_of_255_and_changes_nothing_else(picture, kind):
  probed = images.probe(encode(picture, kind))
  (plain, _), (opaque, _) = probed.decode(), probed.decode(alpha=True)
  np.testing.assert_array_equal(opaque[..., :3], plain)
  assert opaque.shape[-1] == 4 and (opaque[..., 3] == 255).all()
