"""Headers of JPEG, PNG, WebP, BMP and GIF files: size, orientation, parts to decode.

They are read before a decoder sees the file, for two reasons. A decoder allocates what
a header asks for, so its size has to be checked first. And a decoder may fail on
metadata (EXIF, XMP, ICC profiles, texts, lists of further pictures), on which no pixel
depends; so it receives the file without them.
"""

import re
import struct
import zlib
from typing import NamedTuple

ORIENTATION = 0x0112  # tag of EXIF
# Bytes of a tag's value by its type, for the types that an orientation may have.
INTEGERS = {1: "B", 3: "H", 4: "I"}
# Start of a JPEG segment that has a length. Stray bytes before it are skipped, as
# libjpeg skips them.
SEGMENT = re.compile(rb"\xff([\x02-\xcf\xda-\xfe])", re.DOTALL)
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
START_OF_SCAN, APP0, APP1, APP14, APP15, COMMENT = 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
# Encoders write about ten. Each costs a pass over the picture, but few bytes.
MAX_SCANS = 500
PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
WEBP_CHUNKS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
WEBP_METADATA = 0x2C  # flags of ICC profile, EXIF and XMP
RLE = (1, 2)  # compressions of BMP
MAX_RLE_WIDTH = 1 << 16  # one jump in such a file adds up to 255 rows


class Header(NamedTuple):
  """What a file says of its picture."""

  format: str
  width: int  # as stored
  height: int
  body: bytes | bytearray  # the file without metadata
  orientation: int = 1  # of EXIF: 1 to 8, 1 is upright
  frames: int = 1  # of an animation
  channels: int = 0  # of a JPEG
  depth: int = 8  # bits of a PNG's channel


def read(image: bytes) -> Header:
  """Reads the header of an encoded image.

  Raises:
    ValueError: of no known format, or damaged.
  """
  for magic, name, parse in FORMATS:
    if image.startswith(magic):
      try:
        header = parse(image)
      except (struct.error, IndexError, EOFError):
        raise ValueError(f"damaged {name}: the header is cut off") from None
      if not (header.width and header.height):
        raise ValueError(f"damaged {name}: {header.width}x{header.height} pixels")
      return header
  raise ValueError(
    f"cannot identify a JPEG, PNG, WebP, BMP or GIF: the first bytes are {image[:12]!r}"
  )


def read_orientation(exif: bytes) -> int:
  """Returns the orientation, 1 to 8, that EXIF states; 0 if none can be read."""
  while exif.startswith(b"Exif\0\0"):
    exif = exif[6:]
  order = {b"II": "<", b"MM": ">"}.get(exif[:2])
  if not order:
    return 0
  try:
    (entry,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, entry)
    for start in range(entry + 2, entry + 2 + 12 * count, 12):
      tag, kind, values = struct.unpack_from(f"{order}HHI", exif, start)
      if tag == ORIENTATION and kind in INTEGERS and values == 1:
        (value,) = struct.unpack_from(order + INTEGERS[kind], exif, start + 8)
        return value if value <= 8 else 0
  except struct.error:
    pass
  return 0


def _jpeg(image):
  """Segments up to the first scan; of a file of several pictures, the first one."""
  view = memoryview(image)
  body, frame, orientation, end = bytearray(view[:2]), None, 0, 2
  while True:
    found = SEGMENT.search(image, end)
    if not found:
      raise EOFError
    marker, start = found[1][0], found.end()
    (length,) = struct.unpack_from(">H", image, start)
    end = start + max(length, 2)
    if marker == START_OF_SCAN:
      break
    if marker in START_OF_FRAME:
      frame = marker, *struct.unpack_from(">HHB", image, start + 3)
    elif marker == APP1 and image.startswith(b"Exif\0\0", start + 2):
      orientation = orientation or read_orientation(image[start + 2 : end])
    if not _is_jpeg_metadata(image, marker, start + 2, length):
      body += view[start - 2 : end]
  if not frame:
    raise ValueError("damaged JPEG: no size before its first scan")
  marker, height, width, channels = frame
  if marker in PROGRESSIVE or image[start + 2] < channels:  # not all in one scan
    scans = image.count(b"\xff\xda", start)
    if scans >= MAX_SCANS:
      raise ValueError(f"JPEG of {scans + 1} scans; at most {MAX_SCANS} are read")
  body += view[start - 2 :]
  return Header("JPEG", width, height, body, orientation or 1, channels=channels)


def _is_jpeg_metadata(image, marker, start, length):
  """Whether a segment changes no pixel. Two of them tell how colours are stored."""
  if marker == APP0:
    return not (image.startswith(b"JFIF\0", start) and length >= 16)
  if marker == APP14:
    return not (image.startswith(b"Adobe", start) and length >= 14)
  return marker == COMMENT or APP0 < marker <= APP15


def _png(image):
  """All chunks, since metadata may follow the picture."""
  length, name = struct.unpack_from(">I4s", image, 8)
  if name != b"IHDR" or length != 13:
    raise ValueError("damaged PNG: no IHDR chunk at its beginning")
  width, height, depth, color = struct.unpack_from(">IIBB", image, 16)
  view = memoryview(image)
  body, orientation, frames, end = bytearray(view[:8]), 0, 1, 8
  while end + 8 <= len(image):
    start = end
    length, name = struct.unpack_from(">I4s", image, start)
    end = start + 12 + length
    if name in PNG_CHUNKS or (
      name == b"tRNS" and _is_sound_transparency(view[start:end], color)
    ):
      body += view[start:end]
    elif name == b"eXIf":
      orientation = orientation or read_orientation(image[start + 8 : end - 4])
    elif name == b"acTL" and length == 8:
      frames = max(struct.unpack_from(">I", image, start + 8)[0], 1)
    elif not name.isalpha():  # damaged, which the decoder has to find out
      body += view[start:]
      break
    if name == b"IEND":
      break
  return Header("PNG", width, height, body, orientation or 1, frames, depth=depth)


def _is_sound_transparency(chunk, color):
  lengths = {0: [2], 2: [6], 3: range(1, 257)}
  (stored,) = struct.unpack(">I", chunk[-4:])
  return len(chunk) - 12 in lengths.get(color, []) and zlib.crc32(chunk[4:-4]) == stored


def _webp(image):
  """All chunks, since metadata follow the picture."""
  if image[8:12] != b"WEBP":
    raise ValueError(f"a RIFF file of {image[8:12]!r}, not of WEBP")
  view = memoryview(image)
  body, size, orientation, frames, end = bytearray(view[:12]), None, 0, 0, 12
  while end + 8 <= len(image):
    start = end
    name, length = struct.unpack_from("<4sI", image, start)
    content, end = start + 8, start + 8 + length + length % 2
    if name == b"VP8X":
      flags, width, height = struct.unpack_from("<I3s3s", image, content)
      size = [1 + int.from_bytes(side, "little") for side in (width, height)]
      body += view[start:content]
      body += struct.pack("<I", flags & ~WEBP_METADATA)
      body += view[content + 4 : end]
    elif name in WEBP_CHUNKS:
      body += view[start:end]
    if name == b"VP8 " and not size:
      size = [side & 0x3FFF for side in struct.unpack_from("<HH", image, content + 6)]
    elif name == b"VP8L" and not size:
      (bits,) = struct.unpack_from("<I", image, content + 1)
      size = [1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)]
    elif name == b"EXIF":
      orientation = orientation or read_orientation(image[content:end])
    frames += name == b"ANMF"
  if not size:
    raise EOFError
  struct.pack_into("<I", body, 4, len(body) - 8)
  return Header("WEBP", *size, body, orientation or 1, max(frames, 1))


def _bmp(image):
  """Sizes of both generations of the header."""
  (length,) = struct.unpack_from("<I", image, 14)
  if length == 12:
    width, height = struct.unpack_from("<HH", image, 18)
  else:
    width, height = struct.unpack_from("<Ii", image, 18)
    (compression,) = struct.unpack_from("<I", image, 30)
    if compression in RLE and width > MAX_RLE_WIDTH:
      raise ValueError(f"BMP of {width} columns; compressed, at most {MAX_RLE_WIDTH}")
  return Header("BMP", width, abs(height), image)


def _gif(image):
  """The first frame alone; the others are counted as far as they are there."""
  width, height, flags = struct.unpack_from("<HHB", image, 6)
  end = 13 + _palette_length(flags)
  palette, control, first, frames = image[13:end], b"", b"", 0
  while end + 10 <= len(image) and image[end] != 0x3B:
    start = end
    if image[start] == 0x21:
      end = _after_blocks(image, start + 2)
      if image[start + 1] == 0xF9 and not frames and end - start == 8:
        # The frame's disposal is left out: nothing is drawn after it.
        control = (
          b"\x21\xf9\x04" + bytes([image[start + 3] & 1]) + image[start + 4 : end]
        )
    elif image[start] == 0x2C:
      left, top, columns, rows, local = struct.unpack_from("<HHHHB", image, start + 1)
      end = _after_blocks(image, start + 11 + _palette_length(local))
      if not frames:
        width, height = max(width, left + columns), max(height, top + rows)
        first = image[start:end]
      frames += 1
    else:
      end += 1
  if width > 0xFFFF or height > 0xFFFF:
    raise ValueError(f"damaged GIF: a frame of {width}x{height} pixels")
  screen = image[:6] + struct.pack("<HH", width, height) + image[10:13]
  body = b"".join([screen, palette, control, first, b";"])
  return Header("GIF", width, height, body, frames=max(frames, 1))


def _palette_length(flags):
  return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(image, start):
  """Where a GIF's chain of blocks ends."""
  while start < len(image) and image[start]:
    start += 1 + image[start]
  return start + 1


# First bytes, name and parser.
FORMATS = (
  (b"\xff\xd8\xff", "JPEG", _jpeg),
  (b"\x89PNG\r\n\x1a\n", "PNG", _png),
  (b"RIFF", "WEBP", _webp),
  (b"BM", "BMP", _bmp),
  (b"GIF87a", "GIF", _gif),
  (b"GIF89a", "GIF", _gif),
)
