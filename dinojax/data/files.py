"""Files of a source: matched, read up to a limit, and fingerprinted by their content.

Only regular files are read: a FIFO waits for somebody to write, a device never ends.
"""

import concurrent.futures
import errno
import functools
import hashlib
import itertools
import logging
import os
import resource
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dinojax import errors
from dinojax.data import class_labels, walk

MAX_RECORD = 1 << 29  # bytes of one image as it is stored
MAX_OPEN = 8_192  # files of a process, where its limit allows so many
THREADS = 16  # Files may lie behind a network.
# Up to these bounds a fingerprint reads all bytes; above, twice so many blocks of them.
FULL_BYTES, FULL_FILES = 1 << 28, 1 << 16
SAMPLES, SAMPLE_BYTES = 256, 1 << 16


# What the names of files usually end in, by kind of source.
ENDING = {
  "tar": "*.tar",
  "parquet": "*.parquet",
  "arrayrecord": "*.array_record*",
  "csv": "*.csv",
}


class File(NamedTuple):
  """A file, and what shows that it has not changed since it was found."""

  path: str
  size: int
  modified: int  # ns


def match(pattern: str, where: str, *, kind: str) -> list[File]:
  """Returns the files that a pattern matches, sorted by path.

  Args:
    pattern: as glob takes it, with ** for any folders.
    where: the beginning of an error's message.
    kind: of the source, one of ENDING.

  Raises:
    errors.UserError: it matches nothing, or something that is no file.
  """
  refuse_bucket(pattern, where)
  links = []
  paths = sorted(walk.matches(os.path.expanduser(pattern), links))
  if links:
    logging.warning("%s %s", where, walk.about(links))
  if not paths:
    raise errors.UserError(f"{where} matches no file; give a pattern of {kind} files")
  if folders := [path for path in paths if os.path.isdir(path)]:
    name = errors.printable(folders[0])
    raise errors.UserError(
      f"{where}: {name} is a folder; give {kind}:{name}/{ENDING[kind]}"
    )
  return described(paths, where)


def described(paths: Sequence[str], where: str) -> list[File]:
  """Returns files with sizes and times; UserError if one is no regular file."""
  try:
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
      found = list(pool.map(os.stat, paths))
  except OSError as error:
    raise errors.of_disk(error)(f"{where} cannot be read: {error}") from error
  for path, status in zip(paths, found, strict=True):
    if not stat.S_ISREG(status.st_mode):
      raise errors.UserError(
        f"{where} matches {errors.printable(path)}, which is no regular file (but a"
        " FIFO, socket or device); remove it, or give another pattern"
      )
  return [
    File(path, status.st_size, status.st_mtime_ns)
    for path, status in zip(paths, found, strict=True)
  ]


def refuse_bucket(path: str, where: str) -> None:
  """Raises UserError if a path is an address, such as gs://BUCKET."""
  if "://" in path:
    raise errors.UserError(
      f"{where} is a bucket, and only files are read; mount it, for example by gcsfuse,"
      " or copy it to local disks, and give that folder"
    )


def check_size(size: int, label: int = class_labels.NO_LABEL) -> None:
  """Raises NoImageError, with its label, if an image of so many bytes is too large."""
  if size > MAX_RECORD:
    reason = f"{size:,} bytes, over the limit of {MAX_RECORD:,} for an image"
    raise class_labels.NoImageError(reason, label)


def open_regular(path: str) -> int:
  """Opens a file and returns its descriptor; OSError if it is no regular file."""
  # Without O_NONBLOCK, a FIFO would wait here.
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    os.close(descriptor)
    raise OSError(f"{path!r} is no regular file")
  return descriptor


def read(path: str) -> bytes:
  """Returns a file's content.

  Raises:
    OSError: it cannot be read.
    ValueError: it is larger than MAX_RECORD.
  """
  with open(open_regular(path), "rb") as file:
    size = os.fstat(file.fileno()).st_size
    check_size(size)
    return file.read(size)


def stale(path: str, change: str) -> OSError:
  """Returns the error of a file that is not the one that was found at the start."""
  return OSError(errno.ESTALE, f"{path!r} {change} since the run began")


def check_unchanged(file: File) -> None:
  """Raises OSError, ESTALE if a file was removed or changed since it was found."""
  try:
    found = os.stat(file.path)
  except FileNotFoundError:
    raise stale(file.path, "was removed") from None
  if (found.st_size, found.st_mtime_ns) != (file.size, file.modified):
    raise stale(file.path, "has changed")


class Opened:
  """An open file, closed when nobody holds it."""

  def __init__(self, file: File):
    """Opens it; raises OSError, ESTALE if it was removed or changed meanwhile."""
    self._descriptor = None
    try:
      self._descriptor = open_regular(file.path)
    except FileNotFoundError:
      raise stale(file.path, "was removed") from None
    found = os.fstat(self._descriptor)
    if (found.st_size, found.st_mtime_ns) != (file.size, file.modified):
      raise stale(file.path, "has changed")

  def __del__(self):
    """Closes the file."""
    if self._descriptor is not None:
      os.close(self._descriptor)

  def read(self, begin: int, end: int) -> bytes:
    """Returns the bytes from `begin` to `end`, or those of them that exist.

    Raises:
      ValueError: they are more than MAX_RECORD.
    """
    check_size(end - begin)
    return os.pread(self._descriptor, end - begin, begin)


def cache_of_opened() -> Callable[[File], Opened]:
  """Returns a function that opens files and keeps the latest ones open."""
  soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  # The least recently used is dropped, and so closed; a thread at it keeps it.
  return functools.lru_cache(min(soft // 2, MAX_OPEN))(Opened)


def fingerprint(
  root: str,
  names: Sequence[str],
  sizes: Sequence[int],
  modified: Sequence[int],
  *,
  salt: str = "",
) -> str:
  """Returns what identifies a set of files wherever it lies.

  Small sets are read whole. Of sets over FULL_BYTES or FULL_FILES, the beginnings of
  files at even distances are read, and blocks at even distances over all bytes; the
  times of all files are then part of it.

  Args:
    root: the folder that names are relative to.
    names: of the files, in order.
    sizes: of each, in bytes.
    modified: time of each, in ns.
    salt: whatever else changes what is read, such as the names of classes.

  Returns:
    "files=9 names=8F contents=16F", for large sets with " times=8F" behind, where nF
    are n hexadecimal digits.
  """
  ends = list(itertools.accumulate(map(int, sizes)))
  total = ends[-1] if ends else 0
  whole = total <= FULL_BYTES and len(names) <= FULL_FILES
  if whole:
    blocks = [(i, 0, int(size)) for i, size in enumerate(sizes)]
  else:
    blocks = _sample(ends)
  content = hashlib.sha256(f"{salt}\n".encode(errors="backslashreplace"))
  content.update(np.asarray(sizes, np.int64).tobytes())
  step = max(len(blocks) // 256, 1)
  tasks = [blocks[i : i + step] for i in range(0, len(blocks), step)]
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    for digest in pool.map(lambda task: _digest(root, names, task), tasks):
      content.update(digest)
  text = "\n".join(names).encode(errors="surrogateescape")
  fields = [f"files={len(names)}", f"names={hashlib.sha256(text).hexdigest()[:8]}"]
  fields.append(f"contents={content.hexdigest()[:16]}")
  if not whole:
    times = hashlib.sha256(np.asarray(modified, np.int64).tobytes())
    fields.append(f"times={times.hexdigest()[:8]}")
  return " ".join(fields)


def fingerprint_matched(found: Sequence[File], *, salt: str = "") -> str:
  """Returns the `fingerprint` of files that `match` has found."""
  root = common_folder(found)
  names = [os.path.relpath(file.path, root) for file in found]
  _, sizes, modified = zip(*found, strict=True)
  return fingerprint(root, names, sizes, modified, salt=salt)


def common_folder(found: Sequence[File]) -> str:
  """Returns the folder that all files lie below; hosts may mount it elsewhere."""
  return os.path.commonpath([os.path.dirname(os.path.abspath(f.path)) for f in found])


def _sample(ends: Sequence[int]) -> list[tuple[int, int, int]]:
  """Blocks of files that end at `ends`, laid end to end: (number, begin, end)."""
  starts = [0, *ends[:-1]]
  places = [starts[k * (len(ends) - 1) // (SAMPLES - 1)] for k in range(SAMPLES)]
  places += [k * (ends[-1] - 1) // (SAMPLES - 1) for k in range(SAMPLES)]
  numbers = np.searchsorted(np.array(ends), places, side="right").tolist()
  blocks = {}
  for place, number in zip(places, numbers, strict=True):
    size = ends[number] - starts[number]
    begin = min(place - starts[number], max(size - SAMPLE_BYTES, 0))
    blocks[number, begin] = min(begin + SAMPLE_BYTES, size)
  return [(number, begin, end) for (number, begin), end in blocks.items()]


def _digest(
  root: str, names: Sequence[str], blocks: Sequence[tuple[int, int, int]]
) -> bytes:
  """A hash of blocks of files; what cannot be read is a corrupt record later."""
  digest = hashlib.sha256()
  for number, begin, end in blocks:
    try:
      descriptor = open_regular(os.path.join(root, names[number]))
    except OSError:
      digest.update(b"unreadable")
      continue
    try:
      while begin < end:
        found = os.pread(descriptor, min(end - begin, 1 << 20), begin)
        digest.update(found or b"cut short")
        begin = begin + len(found) if found else end
    except OSError:
      digest.update(b"unreadable")
    finally:
      os.close(descriptor)
  return digest.digest()
