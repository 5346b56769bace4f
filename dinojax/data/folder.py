"""Images below a folder, whose sub-folders are classes."""

import contextlib
import itertools
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dinojax import errors
from dinojax.data import arrays, class_labels, files, walk

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TIFF = (".tif", ".tiff")
ARRAYS = (".npy", *TIFF)  # where there is none of ENDINGS


class FolderSource:
  """Images below a folder, in sorted order: pictures, or arrays where there are none.

  If more images lie in sub-folders than beside them, the sorted names of those are the
  classes, and the images beside them have no label. Otherwise no image has one. Hidden
  files and folders are skipped. `paths`: of the images, relative to the folder.
  """

  def __init__(
    self, root: str, where: str, endings: Sequence[tuple[str, ...]] | None = None
  ):
    """Lists the files of the first of some sets of endings that has any.

    Args:
      root: the folder.
      where: the beginning of an error's message.
      endings: sets; None: pictures, or else arrays.
    """
    root = os.path.expanduser(root)
    files.refuse_bucket(root, where)
    found = _list_images(root, where, endings or (ENDINGS, ARRAYS))
    self.where = where
    self._root = root
    self.paths, notes = found.names, found.notes
    if any(path.lower().endswith(TIFF) for path in self.paths):
      arrays.import_tifffile()  # Or every record would be corrupt.
    tops = [name.partition(os.sep)[0] for name in self.paths]
    beside = [name for name in self.paths if os.sep not in name]
    classes = sorted(set(tops).difference(beside))
    if beside and classes:
      flat = 2 * len(beside) >= len(tops)
      classes = [] if flat else classes
      notes.append(_about_beside(beside, len(tops), flat))
    number = {name: i for i, name in enumerate(classes)}
    found_labels = [number.get(top, class_labels.NO_LABEL) for top in tops]
    self.labels = np.array(found_labels, np.int32)
    self.class_names = tuple(map(errors.printable, classes))
    self.notes = tuple(notes)
    self.fingerprint = files.fingerprint(root, self.paths, found.sizes, found.times)

  def __len__(self) -> int:
    """Returns the number of images."""
    return len(self.paths)

  def __getitem__(self, index: int) -> dict:
    """Reads one file."""
    content = files.read(os.path.join(self._root, self.paths[index]))
    return {"image": content, "label": int(self.labels[index])}

  def name(self, index: int) -> str:
    """Returns the file's path."""
    return errors.printable(os.path.join(self._root, self.paths[index]))


class _Listing(NamedTuple):
  """The images below a folder, by sorted path relative to it.

  Lists of a million tuples would cost more, for Python's garbage collection, than
  anything else that a start does.
  """

  names: list[str]
  sizes: list[int]
  times: list[int]  # ns
  notes: list[str]


def _list_images(root: str, where: str, sets: Sequence[tuple[str, ...]]) -> _Listing:
  """Lists the pictures or else the arrays; UserError if there are none."""
  if not os.path.exists(root):
    raise errors.UserError(f"{where} does not exist; give a folder of images")
  if not os.path.isdir(root):
    raise errors.UserError(f"{where} is not a folder; give the one it lies in")
  for endings in sets:
    found, count = _list(root, where, endings)
    if found.names:
      return found
  holds = f"{count} files but no image" if count else "no file at all"
  known = ", ".join(itertools.chain(*sets))
  raise errors.UserError(f"{where} holds {holds}; images end in {known}")


def _list(root: str, where: str, endings: Sequence[str]) -> tuple[_Listing, int]:
  """Lists the files with one of some endings, and counts all files."""
  names, sizes, times, links, special, count = [], [], [], [], [], 0
  for folder, entries in walk.folders(root, where, links):
    count += len(entries)
    prefix = os.path.join(folder, "")
    for entry in entries:
      if not entry.name.lower().endswith(endings):
        continue
      size = time = 0  # A dangling link is a corrupt record later, not an error here.
      with contextlib.suppress(OSError):
        status = entry.stat()
        if not stat.S_ISREG(status.st_mode):
          special.append(prefix + entry.name)
          continue
        size, time = status.st_size, status.st_mtime_ns
      names.append(prefix + entry.name)
      sizes.append(size)
      times.append(time)
  order = sorted(range(len(names)), key=names.__getitem__)
  names, sizes, times = ([x[i] for i in order] for x in (names, sizes, times))
  notes = []
  if links:
    notes.append(walk.about(links))
  if special:
    notes.append(
      f"skips {walk.some(special, 'special file')}: only regular files are images"
    )
  return _Listing(names, sizes, times, notes), count


def _about_beside(beside: Sequence[str], total: int, flat: bool) -> str:
  if flat:
    return (
      f"has no labels: sub-folders are no classes where as many images lie beside them"
      f" ({len(beside):,} of {total:,})"
    )
  return f"has no label for {walk.some(beside, 'image')} beside the folders of classes"
