"""Images that a CSV file names, with their labels.

Its first line names the columns. `file`: path of an image, absolute, or relative to the
folder of the CSV file. `label`: the name of its class, several with ; between, or none.
"""

import concurrent.futures
import csv
import hashlib
import io
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dinojax import errors
from dinojax.data import class_labels, files

COLUMNS = ("file", "label")
BETWEEN = ";"  # labels of an image


class CsvSource:
  """The images of a CSV file, in its order; classes are the sorted names of labels.

  label_sets: the classes of each image, as numbers. In `labels`, images with several
  have none.
  """

  def __init__(self, path: str, where: str):
    """Reads the file, and checks that the images are there."""
    path = os.path.expanduser(path)
    files.refuse_bucket(path, where)
    self.where, self._root = where, os.path.dirname(os.path.abspath(path))
    rows, notes = _read(path, where)
    self._paths = [row.file for row in rows]
    sizes, times = _stats(self._root, rows, where)
    names = sorted({label for row in rows for label in row.labels})
    number = {name: i for i, name in enumerate(names)}
    self.label_sets = [tuple(sorted(number[x] for x in row.labels)) for row in rows]
    single = [x[0] if len(x) == 1 else class_labels.NO_LABEL for x in self.label_sets]
    self.labels = np.array(single, np.int32)
    self.class_names = tuple(map(errors.printable, names))
    if several := sum(len(x) > 1 for x in self.label_sets):
      notes.append(
        f"has several labels for {several:,} of {len(rows):,} images, which count as"
        " none but in finetune --task=labels"
      )
    self.notes = tuple(notes)
    labels = "\n".join(BETWEEN.join(sorted(row.labels)) for row in rows)
    salt = hashlib.sha256(labels.encode()).hexdigest()
    self.fingerprint = files.fingerprint(
      self._root, self._paths, sizes, times, salt=salt
    )

  def __len__(self) -> int:
    """Returns the number of images."""
    return len(self._paths)

  def __getitem__(self, index: int) -> dict:
    """Reads one file."""
    content = files.read(os.path.join(self._root, self._paths[index]))
    return {"image": content, "label": int(self.labels[index])}

  def name(self, index: int) -> str:
    """Returns the file's path."""
    return errors.printable(os.path.join(self._root, self._paths[index]))


class _Row(NamedTuple):
  line: int  # in which it ends, from 1 on
  file: str
  labels: frozenset[str]


def _read(path: str, where: str) -> tuple[list[_Row], list[str]]:
  """The rows, and notes; UserError with the line of the first one that will not do."""
  try:
    text = files.read(path).decode("utf-8-sig")
  except OSError as error:
    raise errors.of_disk(error)(
      f"{where} cannot be read ({error.strerror or error}); give a CSV file"
    ) from error
  except ValueError as error:  # also of other encodings
    raise errors.UserError(
      f"{where} cannot be read ({error}); give a CSV file, in UTF-8"
    ) from error
  reader = csv.reader(io.StringIO(text, newline=""), strict=True)
  try:
    lines = [(reader.line_num, row) for row in reader if row]
  except csv.Error as error:
    raise errors.UserError(f"{where}: line {reader.line_num}: {error}") from error
  if not lines:
    raise errors.UserError(
      f"{where} is empty; its first line must be {','.join(COLUMNS)}"
    )
  (_, head), *lines = lines
  head = [name.strip() for name in head]
  for name in COLUMNS:
    if head.count(name) != 1:
      found = errors.printable(", ".join(head))
      raise errors.UserError(
        f"{where} must have one column {name!r}, and has the columns {found}; its first"
        f" line must be {','.join(COLUMNS)}"
      )
  if not lines:
    raise errors.UserError(f"{where} names no image below its columns")
  ignored = [errors.printable(name) for name in head if name not in COLUMNS]
  notes = [f"has columns that are ignored: {', '.join(ignored)}"] if ignored else []
  return _rows(lines, head, where), notes


def _rows(
  lines: Sequence[tuple[int, list[str]]], head: list[str], where: str
) -> list[_Row]:
  file, label = map(head.index, COLUMNS)
  rows, seen = [], {}
  for line, cells in lines:
    if len(cells) != len(head):
      raise errors.UserError(
        f"{where}: line {line} has {len(cells)} cells, and the first line"
        f" {len(head)}; quote what has a comma in it"
      )
    if not cells[file].strip():
      raise errors.UserError(f"{where}: line {line} names no file")
    path = os.path.normpath(cells[file].strip())
    if (first := seen.setdefault(path, line)) != line:
      raise errors.UserError(
        f"{where}: lines {first} and {line} both name {errors.printable(path)}; give"
        f" each image one line, with several labels as cat{BETWEEN}dog"
      )
    names = (name.strip() for name in cells[label].split(BETWEEN))
    rows.append(_Row(line, path, frozenset(filter(None, names))))
  return rows


def _stats(root: str, rows: Sequence[_Row], where: str) -> tuple[list[int], list[int]]:
  """Bytes and times, in ns, of the files; UserError if one is not there."""

  def of(row):
    try:
      return os.stat(os.path.join(root, row.file))
    except OSError:
      return None

  with concurrent.futures.ThreadPoolExecutor(files.THREADS) as pool:
    found = list(pool.map(of, rows))
  lost = [
    row
    for row, status in zip(rows, found, strict=True)
    if status is None or not stat.S_ISREG(status.st_mode)
  ]
  if lost:
    path = errors.printable(os.path.join(root, lost[0].file))
    raise errors.UserError(
      f"{where}: {len(lost):,} of {len(rows):,} files are not there, the first in line"
      f" {lost[0].line}: {path}"
    )
  return [x.st_size for x in found], [x.st_mtime_ns for x in found]
