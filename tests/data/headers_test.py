"""No metadata cost an image, and no header reserves memory beyond the limit."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dinojax.data import images

# Pillow's warnings name no file, so none may come through.
pytestmark = pytest.mark.filterwarnings("error")

ORIENTATION = 0x0112
SOF = (b"\xff\xc0", b"\xff\xc2")


def encode(image, kind="PNG", **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def chunk(name, content, crc=None):
  crc = zlib.crc32(name + content) if crc is None else crc
  return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png(width, height, *, depth=8, color=2, rows, ancillary=b"", late=b""):
  """A PNG by hand. rows: uncompressed, each with its filter's byte."""
  header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
  return b"".join(
    [
      b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + ancillary,
      chunk(b"IDAT", zlib.compress(rows, 1)) + late + chunk(b"IEND", b""),
    ]
  )


def with_segments(jpeg, *segments):
  """A JPEG with further segments, (marker, content), behind its JFIF header."""
  start = 4 + struct.unpack_from(">H", jpeg, 4)[0]
  added = [
    struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
    for marker, content in segments
  ]
  return jpeg[:start] + b"".join(added) + jpeg[start:]


def with_size(jpeg, width, height):
  """A JPEG whose header claims another size."""
  start = next(i for i in range(len(jpeg)) if jpeg[i : i + 2] in SOF)
  return jpeg[: start + 5] + struct.pack(">HH", height, width) + jpeg[start + 9 :]


@pytest.fixture
def picture():
  rng = np.random.default_rng(0)
  return Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))


EXIF_6 = Image.Exif()
EXIF_6[ORIENTATION] = 6  # upright after 90 degrees clockwise
SOUND = EXIF_6.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
  "exif", [SOUND, b"Exif\0\0" + SOUND, SOUND + SOUND[6:]], ids=["", "prefix", "doubled"]
)
def test_exif_orientation_is_applied(picture, kind, exif):
  smooth = picture.resize((4, 3)).resize((32, 24), Image.Resampling.BICUBIC)
  options = {"lossless": True} if kind == "WEBP" else {}
  plain = images.decode(encode(smooth, kind, **options))
  turned = images.decode(encode(smooth, kind, exif=exif, **options))
  np.testing.assert_array_equal(turned, np.rot90(plain, -1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
  "exif",
  [
    b"Exif\0\0garbage!",
    b"Exif\0\0",
    bytes(64),
    b"Exif\0\0" + bytes(64),
    SOUND[:12],  # breaks off before the entries
    SOUND[:18],  # breaks off in an entry
    b"Exif\0\0II*\0\xff\xff\xff\xff",  # entries beyond the end
    b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 24,  # 65,535 entries
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0",  # 9
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x026\0\0\0",  # the text "6"
  ],
  ids=range(10),
)
def test_broken_exif_means_no_orientation(picture, kind, exif):
  pixels = np.asarray(picture)
  for options in ({}, {"dpi": (72, 72)}):
    if kind == "WEBP":
      options = {"lossless": True}
    if kind == "JPEG":
      options |= {"quality": 95}
      pixels = images.decode(encode(picture, kind, **options))
    encoded = encode(picture, kind, exif=exif, **options)
    np.testing.assert_array_equal(images.decode(encoded), pixels)


def test_damaged_segments_of_a_jpeg_that_change_no_pixel_are_left_out(picture):
  plain = encode(picture, "JPEG")
  for segments in (
    [(0xEE, b"Adobe")],
    [(0xE0, b"JFIF\0")],
    [(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta")],
    [(0xE2, b"ICC_PROFILE\0\x01\x02half")],
    [(0xE2, b"MPF\0II*\0\x08\0\0\0\x02\0garbage")],
    [(0xED, b"Photoshop 3.0\08BIM\x03\xed\0\0\0\0\0\x02ab")],
    [(0xFE, b"comment")] * 3,
    [(0xE1, SOUND[:12]), (0xE1, bytes(9))],
  ):
    encoded = with_segments(plain, *segments)
    np.testing.assert_array_equal(images.decode(encoded), images.decode(plain))


def test_of_several_pictures_in_a_jpeg_the_first_is_the_image(picture):
  small = Image.new("RGB", (8, 6), "blue")
  options = dict(save_all=True, append_images=[small], quality=95)
  encoded = encode(picture, "MPO", **options)
  assert Image.open(io.BytesIO(encoded)).n_frames == 2
  probed = images.probe(encoded)
  assert (probed.height, probed.width, probed.frames) == (24, 32, 1)
  pixels, halved = probed.decode(1)
  assert halved == 1 and pixels.shape == (12, 16, 3)
  expected = images.decode(encode(picture, "JPEG", quality=95))
  np.testing.assert_array_equal(images.decode(encoded), expected)
  # The same with a broken list of pictures, and with the second one cut off.
  for damaged in (encoded.replace(b"MPF\0II*\0", b"MPF\0II*\1"), encoded[:-200]):
    np.testing.assert_array_equal(images.decode(damaged), expected)


LARGE = b"x" * 3_000_000


def text_chunks():
  """PNG metadata of every kind that Pillow bounds, checks or warns of."""
  added = PngImagePlugin.PngInfo()
  added.add_text("Comment", LARGE.decode(), zip=True)
  yield "zTXt", {"pnginfo": added}
  added = PngImagePlugin.PngInfo()
  added.add_itxt("XML:com.adobe.xmp", LARGE.decode(), zip=True)
  yield "iTXt", {"pnginfo": added}
  added = PngImagePlugin.PngInfo()
  for i in range(70):
    added.add_text(f"{i}", LARGE[:1_000_000].decode(), zip=True)
  yield "70 texts", {"pnginfo": added}
  yield "iCCP", {"icc_profile": LARGE}
  for name, content, crc in (
    (b"zTXt", b"Comment\0\x07abc", None),  # an unknown compression
    (b"zTXt", b"Comment\0\0no zlib", None),
    (b"iCCP", b"name\0\x01abc", None),
    (b"iTXt", b"Comment\0\x01\0", None),
    (b"tEXt", b"\xff\xfe", 0),  # a wrong checksum
    (b"sRGB", b"", None),
    (b"pHYs", b"\0", None),
    (b"gAMA", b"\0", None),
    (b"cHRM", b"\0", None),
    (b"acTL", b"\0" * 8, None),  # an animation of no frame
    (b"acTL", b"\0", None),
    (b"fcTL", b"\0", None),
    (b"tRNS", b"\0", None),
    (b"tRNS", b"\0" * 6, 0),
    (b"abCd", b"of a private kind", None),
  ):
    added = PngImagePlugin.PngInfo()
    added.chunks = [(name, content, False)]
    yield f"{name.decode()} {content[:12]}", {"raw": (name, content, crc)}


@pytest.mark.parametrize(
  "options", [pytest.param(made, id=name) for name, made in text_chunks()]
)
def test_no_ancillary_chunk_of_a_png_costs_the_image(picture, options):
  pixels = np.asarray(picture)
  if "raw" not in options:
    encoded = encode(picture, exif=SOUND, **options)
    np.testing.assert_array_equal(images.decode(encoded), np.rot90(pixels, -1))
    return
  rows = np.pad(pixels.reshape(24, 96), [(0, 0), (1, 0)]).tobytes()
  extra = chunk(*options["raw"])
  for where in ("ancillary", "late"):
    encoded = png(32, 24, rows=rows, **{where: extra})
    np.testing.assert_array_equal(images.decode(encoded), pixels)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_an_animation_gives_its_first_frame_and_counts_them(kind):
  red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
  options = {"lossless": True} if kind == "WEBP" else {"disposal": 2}
  for still in (False, True):
    others = [] if still else [blue, red]
    encoded = encode(red, kind, save_all=True, append_images=others, **options)
    assert images.probe(encoded).frames == 1 + len(others)
    assert images.decode(encoded)[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("height", [5_000, 20_000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(height):
  bomb = png(20_000, height, depth=1, color=0, rows=bytes(2501 * height))
  assert len(bomb) < 250_000
  with pytest.raises(ValueError, match=f"20000x{height} .* max_pixels=89478485"):
    images.decode(bomb)


def test_no_header_reserves_memory_for_more_pixels_than_the_limit(picture):
  webp = b"VP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2  # 16,384 pixels wide and high
  webp += encode(picture, "WEBP")[12:]
  gif = encode(picture.convert("P"), "GIF")
  bmp = encode(picture, "BMP")
  for encoded, size in (
    (b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp, "16384x16384"),
    (gif[:6] + b"\xff\xff" * 2 + gif[10:], "65535x65535"),
    (bmp[:18] + struct.pack("<Ii", 1 << 20, -(1 << 20)) + bmp[26:], "1048576x1048576"),
    (with_size(encode(picture, "JPEG"), 20_000, 18_000), "20000x18000 .* 4 times"),
  ):
    with pytest.raises(ValueError, match=f"{size}.*max_pixels"):
      images.decode(encoded)


def test_a_compressed_bmp_cannot_jump_out_of_memory():
  header = struct.pack("<IiiHHIIIIII", 40, 70_000, 1, 1, 8, 1, 0, 0, 0, 1, 0)
  bomb = b"BM" + struct.pack("<III", 0, 0, 58) + header + bytes(4)
  bomb += b"\0\2\xff\xff" * 10
  with pytest.raises(ValueError, match="70000 columns"):
    images.decode(bomb)


def test_a_jpeg_of_very_many_scans_is_refused(picture):
  progressive = encode(picture, "JPEG", progressive=True)
  last = progressive[progressive.rindex(b"\xff\xda") : -2]
  baseline = encode(picture, "JPEG")
  header = baseline[: baseline.index(b"\xff\xda")]
  one_channel = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + bytes(20)
  for bomb in (progressive[:-2] + last * 500, header + one_channel * 501):
    with pytest.raises(ValueError, match=r"JPEG of 5.. scans; at most 500"):
      images.decode(bomb)
