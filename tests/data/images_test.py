"""Every kind of image a web folder holds decodes to RGB, or says why it does not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from dinojax.data import images


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


def test_16_bit_grey_keeps_its_high_byte():
  grey = np.arange(0, 65536, 251, np.uint16)[:256].reshape(16, 16)
  pixels = images.decode(encode(Image.fromarray(grey)))
  np.testing.assert_array_equal(pixels[..., 0], grey >> 8)
  np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(mode):
  if mode == "P":
    encoded = encode(Image.new("P", (2, 2)), transparency=0)
  else:
    encoded = encode(Image.new(mode, (2, 2), 0))
  assert (images.decode(encoded) == 255).all()


def test_half_transparent_black_becomes_grey():
  pixels = images.decode(encode(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
  assert pixels.tolist() == [[[127, 127, 127]]]


def test_exif_orientation_is_applied(picture):
  exif = Image.Exif()
  exif[0x0112] = 6  # The camera was turned: shown upright after 90 degrees clockwise.
  pixels = images.decode(encode(picture, exif=exif))
  np.testing.assert_array_equal(pixels, np.rot90(picture, -1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_an_animation_gives_its_first_frame(kind):
  red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
  lossless = {"lossless": True} if kind == "WEBP" else {}
  encoded = encode(red, kind, save_all=True, append_images=[blue], **lossless)
  assert images.decode(encoded)[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_a_truncated_image_is_refused(picture, kind):
  encoded = encode(picture, kind)
  with pytest.raises(ValueError):
    images.decode(encoded[: len(encoded) // 2])


@pytest.mark.parametrize("damaged", [b"", b"not an image", b"\xff\xd8\xff", b"BM"])
def test_what_is_no_image_is_refused(damaged):
  with pytest.raises(ValueError):
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
      except ValueError:
        continue
      assert pixels.ndim == 3


def test_a_format_outside_the_list_stays_shut(picture):
  with pytest.raises(ValueError, match="cannot identify"):
    images.decode(encode(picture, "EPS"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("height", [5_000, 20_000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(height):
  bomb = encode(Image.new("1", (20_000, height)))
  assert len(bomb) < 100_000
  with pytest.raises(ValueError, match="pixels"):
    images.decode(bomb)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_upright_at_every_size_as_pillow_turns_it(orientation):
  rng = np.random.default_rng(0)
  coarse = Image.fromarray(rng.integers(0, 256, (5, 8, 3), np.uint8))
  exif = Image.Exif()
  exif[0x0112] = orientation
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
