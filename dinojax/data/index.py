"""Index of a set of files: where each record lies, in a file that all processes map.

It is written once, beside the files or else in the user's cache, and mapped: all
processes of a host share one copy, of which they read what they touch.

An index is one uint64 array: for each file in turn the values of its records; then for
each file three columns: how many records it has, where in the array its values begin,
or NOWHERE, and the number of its classes; then the number of files, and MAGIC.
"""

import bisect
import concurrent.futures
import contextlib
import hashlib
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dinojax import errors
from dinojax.data import files

NOWHERE = (1 << 64) - 1  # of a file whose records are found in another way
MAGIC = 0x44494E4F4A415832
MANY = 100  # files: from here on a person should know what takes time


class Scanned(NamedTuple):
  """What an index holds of one file. values: any number of uint64, or None."""

  records: int
  values: np.ndarray | None
  classes: int = 0


class Index:
  """Counts of records, and values, of files; pickles as the name of its own file."""

  def __init__(self, path: pathlib.Path):
    """Maps a whole index; raises ValueError or OSError if it is damaged or absent."""
    self._path = path
    table = np.memmap(path, np.uint64, "r")
    count = int(table[-2])
    if int(table[-1]) != MAGIC or len(table) < 3 * count + 2:
      raise ValueError(f"{path} is damaged")
    columns = np.array(table[-3 * count - 2 : -2].reshape(3, count))
    self.counts = columns[0].astype(np.int64)
    self.classes = columns[2].astype(np.int64)
    self._begins = columns[1].tolist()
    self._values = table[: -3 * count - 2]

  def values(self, file: int) -> np.ndarray | None:
    """Returns the values from a file's first one on; None if there are none."""
    begin = self._begins[file]
    return None if begin == NOWHERE else self._values[begin:]

  def __reduce__(self):
    """Maps the same file again in another process."""
    return Index, (self._path,)


def locate(ends: Sequence[int], record: int) -> tuple[int, int]:
  """Returns the file of a record and its position there; `ends`: counts, summed up."""
  if not 0 <= record < ends[-1]:
    raise IndexError(f"record {record} of {ends[-1]}")
  number = bisect.bisect_right(ends, record)
  return number, record - (ends[number - 1] if number else 0)


def open_index(
  kind: str,
  found: Sequence[files.File],
  where: str,
  *,
  fingerprint: str,
  scan: Callable[[files.File], Scanned],
) -> Index:
  """Opens the index of a set of files, and writes it first if it is not there.

  Several processes and hosts may do so at once: each writes the same under a name of
  its own and renames it.

  Args:
    kind: of index; two of different kinds never share a file.
    found: all files of the set, in order.
    where: the beginning of an error's message.
    fingerprint: of their contents: names, sizes and times may be those of others.
    scan: reads one file; called by several threads.

  Raises:
    errors.UserError: `scan` raised it, or there is no room for the index.
  """
  root = pathlib.Path(files.common_folder(found))
  # A path in the files' folder and not from the root: hosts may mount it elsewhere.
  identity = "\n".join(
    f"{os.path.relpath(path, root)} {size} {modified}" for path, size, modified in found
  )
  text = f"3 {kind}\n{fingerprint}\n{identity}"
  key = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:24]
  cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  folders = root, pathlib.Path(cache, "dinojax")
  for folder in folders:
    with contextlib.suppress(OSError, ValueError, IndexError):
      return Index(folder / f".dinojax-index-{key}")
  reasons = []
  for folder in folders:
    try:
      return _write(folder / f".dinojax-index-{key}", found, scan)
    except OSError as error:
      reasons.append(f"{errors.printable(str(folder))}: {error.strerror or error}")
  raise errors.UserError(
    f"{where}: the index of its records can be written nowhere ({'; '.join(reasons)});"
    " set XDG_CACHE_HOME to a folder with room for it, 8 to 32 bytes a record"
  )


def _write(path: pathlib.Path, found: Sequence[files.File], scan: Callable) -> Index:
  """Writes an index under its name when it is whole, and opens it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  descriptor, new = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
  level = logging.WARNING if len(found) > MANY else logging.INFO
  target = errors.printable(str(path))
  logging.log(level, "indexing %d files, once, into %s", len(found), target)
  counts, begins, classes, length = [], [], [], 0
  try:
    with open(descriptor, "wb") as file:
      for scanned in _scan_all(found, scan):
        counts.append(scanned.records)
        classes.append(scanned.classes)
        begins.append(NOWHERE if scanned.values is None else length)
        if scanned.values is not None:
          file.write(scanned.values.astype(np.uint64, copy=False).tobytes())
          length += scanned.values.size
      columns = [*counts, *begins, *classes, len(found), MAGIC]
      file.write(np.array(columns, np.uint64).tobytes())
      file.flush()
      os.fsync(file.fileno())
    os.chmod(new, 0o644)  # Temporary files are their owner's alone.
    os.replace(new, path)
  except BaseException:
    pathlib.Path(new).unlink(missing_ok=True)
    raise
  return Index(path)


def _scan_all(found: Sequence[files.File], scan: Callable) -> Iterator[Scanned]:
  """Yields what `scan` finds in each file, in order."""
  with concurrent.futures.ThreadPoolExecutor(files.THREADS) as pool:
    # In parts, lest all values wait in memory for the file.
    for start in range(0, len(found), 4 * files.THREADS):
      yield from pool.map(scan, found[start : start + 4 * files.THREADS])
