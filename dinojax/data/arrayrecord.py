"""Layout of ArrayRecord files: where each record lies, and its bytes.

An ArrayRecord file is a Riegeli file: chunks, interrupted by a header at each multiple
of 64 KiB. The last chunks, the footer, say where all others begin. Written with
group_size:1, as usual for images, each chunk is one record, and one read gives it.
Source: Riegeli's "records file format" document and array_record's layout.proto.

DIFFERS: the hashes of chunks are not compared. They are HighwayHash, which no
maintained package offers to Python. Wrong sizes are found here, other damage by the
decoder of the image.
"""

import os
import struct
import threading

import numpy as np
import zstandard

from dinojax.data import files

BLOCK, BLOCK_HEADER = 1 << 16, 24
CHUNK_HEADER = struct.Struct("<8xQ8xQQ")  # size of data, type and records, decoded size
SIMPLE = 0x72  # type of the chunks that are not transposed
NONE, ZSTD = 0, 0x7A  # compressions
MAX_FOOTER = 1 << 28  # bytes; a chunk that claims more is damaged or a bomb
MAGIC = 0x71930E704FDAE05E  # in a file's last block
_THREAD = threading.local()  # A decompressor costs more to make than to use.


class OtherLayoutError(ValueError):
  """A file with several records a chunk, or compressed otherwise than by zstd."""


def record_offsets(path: str) -> np.ndarray:
  """Reads the footer of a shard.

  Returns:
    uint64 [records + 1]: where each record's chunk begins, and where the last one ends.

  Raises:
    OtherLayoutError: the file has another layout, or is no ArrayRecord file.
  """
  with open(path, "rb") as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - BLOCK, 0))
    _, values = _chunk(file.read(BLOCK), size - BLOCK)
    postscript = _varints(values[:32])  # tag, offset of the footer, tag, magic
    if len(postscript) < 4 or postscript[3] != MAGIC:
      raise OtherLayoutError("no ArrayRecord file")
    end = int(postscript[1])
    if not 0 <= size - BLOCK - end <= MAX_FOOTER:
      raise OtherLayoutError("no footer of an ArrayRecord file")
    file.seek(end)
    sizes, values = _chunk(file.read(size - BLOCK - end), end)
    # The first entry describes all; the others hold offset, decoded size, records.
    entries = _varints(values[int(_varints(sizes)[0]) :])
    if len(entries) % 6 or (entries.reshape(-1, 6)[:, ::2] != (8, 16, 24)).any():
      raise OtherLayoutError("a footer of another kind")
    entries = entries.reshape(-1, 6)
    if (entries[:, 5] != 1).any():
      raise OtherLayoutError("several records a chunk")
    offsets = np.append(entries[:, 1], np.uint64(end))
    if len(entries):
      file.seek(int(offsets[0]))
      try:
        begin, size = int(offsets[0]), int(offsets[1] - offsets[0])
        files.check_size(size)
        decode_record(file.read(size), begin)
      except OtherLayoutError:
        raise
      except ValueError:
        pass  # One damaged record is no reason to read the others in another way.
  return offsets


def decode_record(raw: bytes, begin: int) -> bytes:
  """Returns the record of a chunk that lies at `begin` of its file.

  Raises:
    ValueError: the chunk is damaged, or not of one record.
  """
  return _chunk(raw, begin, records=1)[1]


def _chunk(raw: bytes, begin: int, *, records: int | None = None) -> tuple:
  """Returns sizes and values of a chunk, decompressed; ValueError if damaged."""
  # The first block header that interrupts it; the others follow each 64 KiB.
  interruption = -begin % BLOCK
  if interruption < len(raw):
    pieces = [raw[:interruption]]
    for start in range(interruption, len(raw), BLOCK):
      pieces.append(raw[start + BLOCK_HEADER : start + BLOCK])
    raw = b"".join(pieces)
  if len(raw) < CHUNK_HEADER.size + 2:
    raise ValueError("a chunk is cut short")
  size, kind, decoded_size = CHUNK_HEADER.unpack_from(raw)
  end = CHUNK_HEADER.size + size
  if kind & 0xFF != SIMPLE or raw[CHUNK_HEADER.size] not in (NONE, ZSTD):
    raise OtherLayoutError("a damaged chunk, or one of another kind")
  if records not in (None, kind >> 8) or end > len(raw):
    raise ValueError("a damaged chunk")
  if decoded_size > (MAX_FOOTER if records is None else files.MAX_RECORD):
    raise ValueError(f"a damaged chunk: it claims to hold {decoded_size:,} bytes")
  sizes_size, start = _varint(raw, CHUNK_HEADER.size + 1)
  sizes, values = raw[start : start + sizes_size], raw[start + sizes_size : end]
  if raw[CHUNK_HEADER.size] == ZSTD:
    values = _decompress(values, decoded_size)
    if records is None:
      sizes = _decompress(sizes, MAX_FOOTER)
  if len(values) != decoded_size:
    raise ValueError("a damaged chunk")
  return sizes, values


def _decompress(data: bytes, limit: int) -> bytes:
  """Decompresses a size and a zstd frame of that size."""
  size, start = _varint(data, 0)
  frame = data[start:]
  try:
    if size > limit or zstandard.frame_content_size(frame) not in (size, -1):
      raise ValueError("a damaged chunk")
    if not hasattr(_THREAD, "decompressor"):
      _THREAD.decompressor = zstandard.ZstdDecompressor()
    return _THREAD.decompressor.decompress(frame, max_output_size=size)
  except zstandard.ZstdError as error:
    raise ValueError(f"a damaged chunk: {error}") from error


def _varint(data: bytes, start: int) -> tuple[int, int]:
  """Returns one number of 7 bits a byte, and where it ends."""
  value = shift = 0
  for end in range(start, min(start + 10, len(data))):
    value |= (data[end] & 0x7F) << shift
    if data[end] < 0x80:
      return value, end + 1
    shift += 7
  raise ValueError("a damaged chunk")


def _varints(data: bytes) -> np.ndarray:
  """Returns all numbers of `data`, uint64: vectorised, as a footer has 100,000."""
  octets = np.frombuffer(data, np.uint8)
  ends = np.flatnonzero(octets < 0x80)
  starts = np.append(0, ends[:-1] + 1)[: len(ends)]
  lengths = ends - starts + 1
  values = np.zeros(len(ends), np.uint64)
  for i in range(min(lengths.max(initial=0), 10)):
    longer = lengths > i
    bits = octets[starts[longer] + i] & np.uint8(0x7F)
    values[longer] |= bits.astype(np.uint64) << np.uint64(7 * i)
  return values
