"""Where each record of a set of ArrayRecord shards lies: a file that all processes map.

array_record's own index is read from every shard by every process and kept in its
memory. This one is written once, beside the shards or else in the user's cache, and
mapped: all processes of a host share one copy, of which they read what they touch.

The file is one uint64 array: for each shard in turn the places of its records and of
the end of the last one; then for each shard how many records it has; then for each
where in the array its places begin, or NOWHERE; then the number of shards.
"""

import concurrent.futures
import contextlib
import hashlib
import logging
import os
import pathlib
import tempfile
import typing
from collections.abc import Iterator, Sequence

import numpy as np

from dinojax import errors
from dinojax.data import arrayrecord

NOWHERE = (1 << 64) - 1  # of a shard that array_record has to read
THREADS = 16  # Many shards lie behind a network.
MANY = 100  # shards: from here on a person should know what takes time


class Shard(typing.NamedTuple):
  """A file, as it was when its records were counted."""

  path: str
  size: int
  modified: int  # ns


class Index:
  """Counts of records, and their places, of shards; pickles as the name of its file."""

  def __init__(self, path: pathlib.Path):
    """Maps a whole index; raises ValueError or OSError if it is damaged or absent."""
    self._path = path
    table = np.memmap(path, np.uint64, "r")
    shards = int(table[-1])
    if len(table) < 2 * shards + 1:
      raise ValueError(f"{path} is damaged")
    self.counts = table[-2 * shards - 1 : -shards - 1].astype(np.int64)
    self._begins = table[-shards - 1 : -1].tolist()
    indexed = [begin != NOWHERE for begin in self._begins]
    if len(table) != 2 * shards + 1 + int((self.counts + 1)[indexed].sum()):
      raise ValueError(f"{path} is damaged")
    self._table = table

  def place(self, shard: int, record: int) -> tuple[int, int] | None:
    """Returns where a record begins and ends; None: array_record has to read it."""
    begin = self._begins[shard]
    if begin == NOWHERE:
      return None
    first, last = self._table[begin + record : begin + record + 2].tolist()
    return first, last

  def __reduce__(self):
    """Maps the same file again in another process."""
    return Index, (self._path,)


def list_shards(paths: Sequence[str]) -> list[Shard]:
  """Returns size and time of each file."""

  def look(path: str) -> Shard:
    stat = os.stat(path)
    return Shard(path, stat.st_size, stat.st_mtime_ns)

  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    return list(pool.map(look, paths))


def open_index(shards: Sequence[Shard], where: str) -> Index:
  """Opens the index of shards, and writes it first if it is not there.

  Several processes and hosts may do so at once: each writes the same under a name of
  its own and renames it.

  Args:
    shards: all of a set, in order.
    where: the beginning of an error's message.

  Raises:
    errors.UserError: a shard is damaged, or there is no room for the index.
  """
  root = pathlib.Path(os.path.commonpath([os.path.dirname(s.path) for s in shards]))
  # A path in the shards' folder and not from the root: hosts may mount it elsewhere.
  identity = "\n".join(
    f"{os.path.relpath(path, root)} {size} {modified}"
    for path, size, modified in shards
  )
  key = hashlib.sha256(os.fsencode(f"1\n{identity}")).hexdigest()[:24]
  cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  folders = root, pathlib.Path(cache, "dinojax")
  for folder in folders:
    with contextlib.suppress(OSError, ValueError, IndexError):
      return Index(folder / f".dinojax-index-{key}")
  reasons = []
  for folder in folders:
    try:
      return _write(folder / f".dinojax-index-{key}", shards, where)
    except OSError as error:
      reasons.append(f"{folder}: {error.strerror or error}")
  raise errors.UserError(
    f"{where}: the index of its records can be written nowhere ({'; '.join(reasons)});"
    " set XDG_CACHE_HOME to a folder with room for 8 bytes a record"
  )


def _write(path: pathlib.Path, shards: Sequence[Shard], where: str) -> Index:
  """Writes an index under its name when it is whole, and opens it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  descriptor, new = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
  level = logging.WARNING if len(shards) > MANY else logging.INFO
  logging.log(level, "indexing %d shards, once, into %s", len(shards), path)
  counts, begins, others, length = [], [], [], 0
  try:
    with open(descriptor, "wb") as file:
      for shard, count, offsets in _read_footers(shards, where):
        counts.append(count)
        begins.append(NOWHERE if offsets is None else length)
        if offsets is None:
          others.append(shard.path)
        else:
          file.write(offsets.tobytes())
          length += len(offsets)
      file.write(np.array([*counts, *begins, len(shards)], np.uint64).tobytes())
      file.flush()
      os.fsync(file.fileno())
    os.chmod(new, 0o644)  # Temporary files are their owner's alone.
    os.replace(new, path)
  except BaseException:
    pathlib.Path(new).unlink(missing_ok=True)
    raise
  if others:
    logging.warning(
      "%s and %d more shards are not one record a chunk, plain or zstd: array_record"
      " reads them, slower and with an index of its own in every process; write them"
      " with group_size:1",
      *(others[0], len(others) - 1),
    )
  return Index(path)


def _read_footers(
  shards: Sequence[Shard], where: str
) -> Iterator[tuple[Shard, int, np.ndarray | None]]:
  """Yields each shard with its number of records and, if they are known, its places."""
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    # In parts, lest all places wait in memory for the file.
    for start in range(0, len(shards), 4 * THREADS):
      part = shards[start : start + 4 * THREADS]
      try:
        found = list(pool.map(_read_footer, part))
      except RuntimeError as error:
        raise errors.UserError(f"{where} matches a damaged shard, {error}") from error
      for shard, (count, offsets) in zip(part, found, strict=True):
        yield shard, count, offsets


def _read_footer(shard: Shard) -> tuple[int, np.ndarray | None]:
  """Number and places of a shard's records; RuntimeError, naming it, if damaged."""
  count = _count_records(shard.path)  # It compares the footer's hash, too.
  try:
    offsets = arrayrecord.record_offsets(shard.path)
  except ValueError:
    return count, None
  return count, offsets if len(offsets) == count + 1 else None


def _count_records(path: str) -> int:
  """Returns the number of records of a shard, or raises RuntimeError naming it."""
  # Here: it costs a second, and a run whose index is written has no need of it.
  from array_record.python import array_record_module

  reader = array_record_module.ArrayRecordReader(path)
  count = reader.num_records()
  try:
    reader.close()  # Raises what was wrong since opening; a bad shard counts 0.
  except RuntimeError as error:
    raise RuntimeError(f"{path}: {error}") from error
  return count
