"""Members of a tar file, in order, with where their contents lie.

tarfile reads every kind of header, in 60 microseconds; the usual kind is read here in
a tenth of that, since a set has millions. Nothing is read before its size is known to
be within a limit.
"""

import bz2
import contextlib
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from dinojax import errors
from dinojax.data import files

BLOCK = 512  # bytes of tar's unit; an empty one ends the file
MAX_HEADER = 1 << 20  # bytes of an extended header, such as of a long name
COMPRESSIONS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
# What the readers raise of bytes that are no tar file, besides OSError without errno.
_DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)
_DAMAGE += (zlib.error, lzma.LZMAError)


class DamagedError(Exception):
  """A tar file that cannot be read on."""


class Member(NamedTuple):
  """A member, and where its header and its content begin in the decompressed file.

  irregular: whether it is no plain file, but a sparse one, a link or a device.
  """

  name: str
  header: int
  begin: int
  size: int
  irregular: bool


class Tar:
  """An open tar file, compressed or not."""

  def __init__(self, path: str):
    """Opens it; raises OSError if it cannot be read at all."""
    self._raw = open(files.open_regular(path), "rb")  # noqa: SIM115, till `close`
    start = self._raw.read(BLOCK)
    self._raw.seek(0)
    self._size = os.fstat(self._raw.fileno()).st_size
    opens = [open for magic, open in COMPRESSIONS.items() if start.startswith(magic)]
    self.compressed = bool(opens) and start[257:262] != b"ustar"
    self._file = _Bounded(opens[0](self._raw) if self.compressed else self._raw)
    self._tar = self._info = None  # tarfile's, of the latest member that it has read
    self._next = 0  # where the next header begins

  def close(self) -> None:
    """Closes the file."""
    self._file.file.close()
    self._raw.close()

  def members(self) -> Iterator[Member]:
    """Yields all but folders, once; DamagedError where they cannot be read on."""
    while member := self._read_header():
      if not (self._info and self._info.isdir()):
        yield member

  def complete(self) -> bool:
    """Returns whether the file ends as it should behind its members, once all are read.

    tarfile takes a broken header for the end, and a missing one, too.
    """
    with _damage():
      self._file.seek(self._next)
      return self._file.read(BLOCK) == bytes(BLOCK)

  def member_at(self, header: int) -> Member:
    """Returns the member whose header begins there; DamagedError if none does."""
    self._next = header
    member = self._read_header()
    if member is None:
      raise DamagedError("no member where one was")
    return member

  def read(self, member: Member) -> bytes:
    """Returns the content of the latest member.

    Raises:
      ValueError: it is larger than files.MAX_RECORD, or no file.
      DamagedError: it is cut short.
    """
    files.check_size(member.size)
    if self._tar is None:
      content = os.pread(self._raw.fileno(), member.size, member.begin)
    elif not self._info.isfile():
      link = errors.printable(self._info.linkname)
      raise ValueError(f"a link to {link}, and no file" if link else "no regular file")
    else:
      self._file.limit = files.MAX_RECORD
      with _damage(), self._tar.extractfile(self._info) as file:
        content = file.read()
      self._file.limit = MAX_HEADER
    if len(content) < member.size:
      raise DamagedError(f"it ends within {errors.printable(member.name)}")
    return content

  def _read_header(self) -> Member | None:
    """Reads the next member; None at the end."""
    header, member = self._next, None
    if not self.compressed:
      self._tar = self._info = None
      block = os.pread(self._raw.fileno(), BLOCK, header)
      member = _usual(block, header)
    if member:
      self._next = member.begin - -member.size // BLOCK * BLOCK
    elif (member := self._read_by_tarfile(header)) is None:
      return None
    if self._next <= header:
      raise DamagedError("a header that leads backwards")
    if not (self.compressed or member.irregular) and (
      member.begin + member.size > self._size
    ):
      raise DamagedError(f"it ends within {errors.printable(member.name)}")
    return member

  def _read_by_tarfile(self, header: int) -> Member | None:
    """Reads a member of any kind; of a compressed file in order alone."""
    with _damage():
      if self._tar is None:
        self._file.seek(header)
        self._tar = tarfile.TarFile(fileobj=self._file)
      info = self._info = self._tar.next()
      self._tar.members = []  # It would keep a record of every file it has passed.
    self._next = self._tar.offset
    if info is None:
      return None
    irregular = not info.isreg() or info.issparse()
    return Member(info.name, header, info.offset_data, info.size, irregular)


class _Bounded:
  """A file for tarfile, which would read as much at once as a header claims."""

  def __init__(self, file):
    self.file = file
    self.limit = MAX_HEADER
    self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

  def read(self, size: int) -> bytes:
    if not 0 <= size <= self.limit:
      raise DamagedError(f"a header that claims {size:,} bytes")
    return self.file.read(size)


@contextlib.contextmanager
def _damage() -> Iterator[None]:
  """Turns what the readers raise of damaged bytes into a DamagedError."""
  try:
    yield
  except OSError as error:
    if error.errno is not None:  # of the file system
      raise
    raise DamagedError(str(error)) from error
  except _DAMAGE as error:
    raise DamagedError(str(error) or type(error).__name__) from error


def _usual(block: bytes, header: int) -> Member | None:
  """Parses the header of a plain file; None if it is of any other kind."""
  if len(block) < BLOCK or block[156] not in b"0\0":
    return None
  try:
    size = int(block[124:136].strip(b" \0"), 8)
    checksum = int(block[148:156].strip(b" \0"), 8)
  except ValueError:
    return None
  spaces = 8 * ord(" ")  # in place of the checksum itself
  if size < 0 or checksum != sum(block) - sum(block[148:156]) + spaces:
    return None
  name, prefix = (field.partition(b"\0")[0] for field in (block[:100], block[345:500]))
  if not name or name.endswith(b"/"):
    return None
  name = os.fsdecode(prefix + b"/" + name if prefix else name)
  return Member(name, header, header + BLOCK, size, irregular=False)
