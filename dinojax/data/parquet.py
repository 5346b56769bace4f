"""Images in Parquet files, by index and in order.

pyarrow decodes a row group at least up to the row that is wanted, so that reading in
any order wants small row groups; those of Hugging Face have 100 images.
"""

import collections
import concurrent.futures
import functools
import itertools
import os
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from dinojax import errors
from dinojax.data import class_labels, files, index, parquet_columns

ROWS = 128  # read at once in order, or fewer if they have more bytes than that:
BATCH_BYTES = 1 << 28
GROUP_BYTES, MAX_GROUP_BYTES = 1 << 26, 1 << 30  # row groups that are slow, and refused
CACHE_BYTES = 1 << 28  # of row groups that a process keeps
OPEN_FILES = 64  # of a process; each holds its footer
SMALLER = (
  "write them with row_group_size=100, or make shards by python -m dinojax.ingest"
)


class _Described(NamedTuple):
  """What the footer of a file says."""

  columns: parquet_columns.Columns
  rows: list[int]  # of each row group
  image_bytes: list[int]
  class_names: tuple[str, ...]
  top: int  # the largest label


class ParquetSource:
  """Images of Parquet files, sorted by name.

  Classes are Hugging Face's if the files name them, and otherwise the numbers in the
  label column. Where files name them differently, nothing has a label.
  """

  labels = None  # They lie in the rows.

  def __init__(self, pattern: str, where: str):
    """Reads the footers of the files."""
    self.where = where
    self._files = files.match(pattern, where, kind="parquet")
    describe = functools.partial(_describe, where=where)
    with concurrent.futures.ThreadPoolExecutor(files.THREADS) as pool:
      found = list(pool.map(describe, self._files))
    self._columns = [file.columns for file in found]
    self._groups = [
      (i, j) for i, file in enumerate(found) for j in range(len(file.rows))
    ]
    rows = itertools.chain.from_iterable(file.rows for file in found)
    self._ends = list(itertools.accumulate(rows))
    if not self._ends or not self._ends[-1]:
      raise errors.UserError(f"{where} matches {len(found)} files without a row")
    self.class_names = _common_names(found)
    self.notes = self._check_groups(found)
    self.fingerprint = files.fingerprint_matched(
      self._files, salt=f"{sorted(set(self._columns))} {self.class_names}"
    )
    self._open_lazily()

  def _open_lazily(self):
    """Makes what neither pickles nor is shared by processes."""
    self._open = functools.lru_cache(OPEN_FILES)(_open)
    self._tables = collections.OrderedDict()
    self._lock = threading.Lock()

  def __getstate__(self) -> dict:
    """Leaves open files, and what was read of them, behind."""
    own = ("_open", "_tables", "_lock")
    return {name: value for name, value in vars(self).items() if name not in own}

  def __setstate__(self, state: dict):
    """Comes without open files."""
    vars(self).update(state)
    self._open_lazily()

  def __len__(self) -> int:
    """Returns the number of rows of all files."""
    return self._ends[-1]

  def __getitem__(self, record: int) -> dict:
    """Reads one row."""
    group, row = index.locate(self._ends, record)
    columns = self._columns[self._groups[group][0]]
    image, label = parquet_columns.cell(self._table(group), row, columns)
    if not 0 <= label < len(self.class_names):
      label = class_labels.NO_LABEL
    if image is None:
      raise class_labels.NoImageError("no bytes in this row", label)
    files.check_size(len(image), label)
    return {"image": image, "label": label}

  def name(self, record: int) -> str:
    """Returns file, row group and row."""
    group, row = index.locate(self._ends, record)
    number, group = self._groups[group]
    return f"{errors.printable(self._files[number].path)}#{group}.{row}"

  def _table(self, group: int) -> Any:
    """Returns the columns of a row group, from memory if it was read lately."""
    import pyarrow

    with self._lock:  # Arrow's readers are not for two threads at once.
      if group in self._tables:
        self._tables.move_to_end(group)
        return self._tables[group]
      number, group_of_file = self._groups[group]
      columns = self._columns[number]
      try:
        file = self._open(self._files[number], columns.leaf)
        table = file.read_row_group(
          group_of_file, columns=columns.names, use_threads=False
        )
      except (OSError, pyarrow.ArrowException) as error:
        if not parquet_columns.is_damage(error):
          raise
        raise ValueError(
          f"row group {group_of_file} is damaged: {parquet_columns.first_line(error)}"
        ) from error
      self._tables[group] = table
      while len(self._tables) > 1 and self._kept_bytes() > CACHE_BYTES:
        self._tables.popitem(last=False)
      return table

  def _kept_bytes(self) -> int:
    return sum(table.nbytes for table in self._tables.values())

  def _check_groups(self, found: list[_Described]) -> tuple[str, ...]:
    """Refuses row groups that no process should hold, and notes those that are slow."""
    largest, path = max(
      (max(described.image_bytes, default=0), file.path)
      for described, file in zip(found, self._files, strict=True)
    )
    size = f"{largest / 2**20:,.0f} MiB of images in one row group"
    if largest > MAX_GROUP_BYTES:
      raise errors.UserError(
        f"{self.where} matches {errors.printable(path)}, which has {size}: one image"
        f" cannot be read without the others; {SMALLER}"
      )
    if largest > GROUP_BYTES:
      return (f"has up to {size}, which is read for each image of it; {SMALLER}",)
    return ()


def read(
  path: str, group: int, image_column: str, label_column: str
) -> Iterator[tuple[str, bytes | None, int, str]]:
  """Yields (row in the group, encoded image, label, "") of a row group, in order.

  A row without bytes has None and what is wrong; so has the last one, of name "", if
  the group is damaged.
  """
  import pyarrow

  number = 0
  with parquet_columns.opened(path, path, image_column, label_column) as (
    file,
    columns,
  ):
    size = parquet_columns.image_bytes(file, group, columns)
    rows = max(file.metadata.row_group(group).num_rows, 1)
  at_once = max(min(ROWS, BATCH_BYTES // max(size // rows, 1)), 1)
  try:
    with _reader(path, columns.leaf) as file:
      for batch in file.iter_batches(
        at_once, row_groups=[group], columns=columns.names, use_threads=False
      ):
        for row in range(batch.num_rows):
          image, label = parquet_columns.cell(batch, row, columns)
          trouble = "" if image else "no bytes in this row"
          yield str(number), image, label, trouble
          number += 1
  except (OSError, pyarrow.ArrowException) as error:
    if not parquet_columns.is_damage(error):
      raise
    trouble = f"row group {group} is damaged: {parquet_columns.first_line(error)}"
    yield "", None, class_labels.NO_LABEL, trouble


def row_groups(path: str, where: str, *wanted: str) -> tuple[int, tuple[str, ...]]:
  """Returns the number of a file's row groups, and the names of its classes, or ().

  Args:
    path: of the file.
    where: the beginning of an error's message.
    wanted: as `parquet_columns.opened` takes them.

  Raises:
    errors.UserError: it is no Parquet file, or has no such columns.
  """
  with parquet_columns.opened(path, where, *wanted) as (file, columns):
    return file.num_row_groups, parquet_columns.class_names(file, columns)


def _describe(file: files.File, *, where: str) -> _Described:
  with parquet_columns.opened(file.path, where) as (opened, columns):
    names = parquet_columns.class_names(opened, columns)
    groups = range(opened.num_row_groups)
    return _Described(
      columns=columns,
      rows=[opened.metadata.row_group(group).num_rows for group in groups],
      image_bytes=[parquet_columns.image_bytes(opened, i, columns) for i in groups],
      class_names=names,
      top=len(names) - 1 if names else parquet_columns.top_label(opened, columns),
    )


def _common_names(found: list[_Described]) -> tuple[str, ...]:
  """Returns the names of classes, by label; () if files name them differently."""
  names = {file.class_names for file in found}
  if names == {()}:
    return class_labels.numbered_classes(max(file.top for file in found))
  return names.pop() if len(names) == 1 else ()


def _open(file: files.File, leaf: str) -> Any:
  """Opens a file to read row groups; OSError if it has changed since it was found."""
  files.check_unchanged(file)
  return _reader(file.path, leaf)


def _reader(path: str, leaf: str) -> Any:
  import pyarrow
  from pyarrow import parquet

  # As a dictionary: a few bytes of a file may stand for the same large image a million
  # times, and would be decoded to as many copies.
  file = pyarrow.OSFile(os.fsencode(path))
  return parquet.ParquetFile(file, read_dictionary=[leaf])
