"""Images of tar files as img2dataset and webdataset write them.

KEY.jpg with KEY.json, KEY.txt or KEY.cls beside it, one after the other: neighbours
whose names are equal up to the first dot are one sample. A label is the number in the
.cls of the image's own name, or else in that of its sample.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dinojax import errors
from dinojax.data import class_labels, files, index, tar_members

ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
MAX_TEXT = 64  # bytes of a .cls; a longer one is no number
BROKEN = "the file is damaged, or breaks off, behind its last image"
ROW = 4  # values of a record in the index: header, begin, size, label


class Image(NamedTuple):
  """An image as it was found; the last one of a damaged file has no key."""

  key: str  # its name in the tar file without the ending
  content: bytes | None  # None if `trouble` says why not
  label: int  # or one of class_labels.NO_LABEL, class_labels.NOT_A_CLASS
  trouble: str


class TarSource:
  """Images of uncompressed tar files, sorted by name.

  Classes are the numbers of the labels; where one is too large for that, nothing has a
  label. A damaged file has one record more, which is corrupt, behind its last image.
  """

  notes = ()

  def __init__(self, pattern: str, where: str):
    """Lists the files, and opens the index of their images."""
    self.where = where
    self._tars = files.match(pattern, where, kind="tar")
    scan = functools.partial(_scan, where=where)
    self.fingerprint = files.fingerprint_matched(self._tars)
    self._index = index.open_index(
      "tar", self._tars, where, fingerprint=self.fingerprint, scan=scan
    )
    self._ends = np.cumsum(self._index.counts).tolist()
    if not self._holds_images():
      first = errors.printable(self._tars[0].path)
      raise errors.UserError(
        f"{where} matches {len(self._tars)} files without an image (the first:"
        f" {first}); give tar files of images"
      )
    self._file = files.cache_of_opened()
    self.class_names = class_labels.numbered_classes(int(self._index.classes.max()) - 1)

  def __getstate__(self) -> dict:
    """Leaves open files behind."""
    return {name: x for name, x in vars(self).items() if name != "_file"}

  def __setstate__(self, state: dict):
    """Comes without open files."""
    vars(self).update(state)
    self._file = files.cache_of_opened()

  def __len__(self) -> int:
    """Returns the number of images of all files."""
    return self._ends[-1]

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """Returns the label of each image, from the index."""
    values = [self._index.values(number)[3::ROW] for number in range(len(self._tars))]
    labels = np.concatenate(values).astype(np.int64)
    known = (labels >= 0) & (labels < len(self.class_names))
    return np.where(known, labels, class_labels.NO_LABEL)

  def __getitem__(self, record: int) -> dict:
    """Reads one image."""
    tar, header, begin, size, label = self._locate(record)
    file = self._file(tar)
    if header == index.NOWHERE:
      raise ValueError(BROKEN)
    if begin == index.NOWHERE:
      content = _read_irregular(tar.path, header)
    else:
      content = file.read(begin, begin + size)
    if len(content) < size:
      raise OSError(f"{tar.path!r} has been cut short since the run began")
    known = 0 <= label < len(self.class_names)
    return {"image": content, "label": label if known else class_labels.NO_LABEL}

  def name(self, record: int) -> str:
    """Returns tar file and key."""
    tar, header, *_ = self._locate(record)
    path = errors.printable(tar.path)
    if header == index.NOWHERE:
      return path
    try:
      with contextlib.closing(tar_members.Tar(tar.path)) as opened:
        name = opened.member_at(header).name
    except (OSError, tar_members.DamagedError):  # Gone, or changed since the start.
      return f"{path}#{record}"
    return f"{path}:{_stem(name)}"

  def _holds_images(self) -> bool:
    """Returns whether there is a record besides those of damage."""
    firsts = (
      self._index.values(number)[0]
      for number, count in enumerate(self._index.counts.tolist())
      if count
    )
    return any(first != index.NOWHERE for first in firsts)

  def _locate(self, record: int) -> tuple[files.File, int, int, int, int]:
    """Returns the file of an image, and its row of the index."""
    number, position = index.locate(self._ends, record)
    row = self._index.values(number)[ROW * position : ROW * (position + 1)]
    header, begin, size, label = row.tolist()
    return self._tars[number], header, begin, size, _signed(label)


def _signed(value: int) -> int:
  """Returns the label that an index keeps as uint64."""
  return value - (1 << 64) if value >> 63 else value


def _scan(tar: files.File, *, where: str) -> index.Scanned:
  """Finds the images of a tar file, for the index."""
  rows, top = [], class_labels.NO_LABEL
  damaged = index.NOWHERE, index.NOWHERE, 0, class_labels.NO_LABEL % (1 << 64)
  try:
    with contextlib.closing(tar_members.Tar(tar.path)) as opened:
      if opened.compressed:
        raise errors.UserError(
          f"{where} matches {errors.printable(tar.path)}, which is compressed, so that"
          " its images cannot be read in any order; decompress it (gunzip, bunzip2,"
          " unxz), or make shards of it by python -m dinojax.ingest"
        )
      for member, image in _images(opened, contents=False):
        begin = index.NOWHERE if member.irregular else member.begin
        rows.append((member.header, begin, member.size, image.label % (1 << 64)))
        top = max(top, image.label)
      if not opened.complete():
        rows.append(damaged)
  except tar_members.DamagedError:
    rows.append(damaged)
  except OSError as error:
    raise errors.of_disk(error)(f"{where} cannot be read: {error}") from error
  classes = min(top, class_labels.MAX_CLASSES) + 1
  return index.Scanned(len(rows), np.array(rows, np.uint64).reshape(-1), classes)


def _read_irregular(path: str, header: int) -> bytes:
  """Reads what does not lie in one piece; ValueError if that is no file."""
  try:
    with contextlib.closing(tar_members.Tar(path)) as opened:
      return opened.read(opened.member_at(header))
  except tar_members.DamagedError as error:
    raise ValueError(str(error)) from error


def is_tar(path: str) -> bool:
  """Returns whether a file begins as a tar file does, compressed or not."""
  try:
    with contextlib.closing(tar_members.Tar(path)) as opened:
      return next(opened.members(), None) is not None or opened.complete()
  except tar_members.DamagedError:
    return False
  except OSError:
    return True  # It may be one; reading it will say what is wrong.


def read(path: str) -> Iterator[Image]:
  """Yields the images of a tar file, compressed or not, in order.

  If the file is damaged, an Image without key and content comes last: what lies behind
  the damage is lost.

  Raises:
    OSError: it cannot be read at all.
  """
  with contextlib.closing(tar_members.Tar(path)) as opened:
    try:
      for _, image in _images(opened, contents=True):
        yield image
      damage = "" if opened.complete() else BROKEN
    except tar_members.DamagedError as error:
      damage = f"the file is damaged: {error}"
  if damage:
    yield Image("", None, class_labels.NO_LABEL, damage)


def _images(
  tar: tar_members.Tar, *, contents: bool
) -> Iterator[tuple[tar_members.Member, Image]]:
  """Yields the images in order, if wanted with their contents; DamagedError at the end.

  A sample waits in memory: compressed files are read once, and a .cls may come last.
  """
  sample, found, texts = None, [], {}
  try:
    for member in tar.members():
      key, ending = _key(member.name), member.name.rpartition(".")[2].lower()
      if key is None or ending not in (*ENDINGS, "cls"):
        continue
      if key != sample:
        yield from _labelled(sample, found, texts)
        sample, found, texts = key, [], {}
      if ending == "cls":
        readable = member.size <= MAX_TEXT and not member.irregular
        texts[_stem(member.name)] = tar.read(member) if readable else b"no number"
        continue
      content, trouble = None, ""
      if contents:
        held = sum(len(image or b"") for _, _, image, _ in found)
        try:
          files.check_size(held + member.size)
          content = tar.read(member)
        except ValueError as error:
          trouble = str(error)
      found.append((ENDINGS.index(ending), member, content, trouble))
  except tar_members.DamagedError:
    yield from _labelled(sample, found, texts)
    raise
  yield from _labelled(sample, found, texts)


def _labelled(
  sample: str | None, found: list, texts: dict[str, bytes]
) -> Iterator[tuple[tar_members.Member, Image]]:
  """Yields the images of a sample by ending, with their labels."""
  for _, member, content, trouble in sorted(found, key=lambda image: image[0]):
    stem = _stem(member.name)
    text = texts.get(stem, texts.get(sample))
    yield member, Image(stem, content, class_labels.parse(text), trouble)


def _key(name: str) -> str | None:
  """Returns what the names of a sample share; None if the name is hidden."""
  folder, slash, base = name.rpartition("/")
  first, dot, _ = base.partition(".")
  return errors.printable(folder + slash + first) if first and dot else None


def _stem(name: str) -> str:
  """Returns a name without its ending."""
  return errors.printable(name.rpartition(".")[0])
