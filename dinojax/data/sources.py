"""Where records come from: one string per source, to encoded images and labels.

  folder:PATH            class folders, or any tree of images without labels
  tfds:NAME:SPLIT        a prepared tensorflow-datasets dataset, without TensorFlow
  arrayrecord:GLOB       ArrayRecord shards of images or of tf.train.Example
  embedded:digits:SPLIT  scikit-learn's handwritten digits, train or test

A source is a small picklable object that opens its files lazily: every input worker
process holds a copy.
"""

import glob
import hashlib
import os
import re
from typing import Protocol

import numpy as np

from dinojax import errors
from dinojax.data import shards

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
DIGITS_TEST = 450  # of 1,797; the last ones
# What reading a damaged record raises: file systems, array_record, decoders.
UNREADABLE = (OSError, RuntimeError, ValueError)


class Source(Protocol):
  """What every source offers."""

  where: str  # config path and value, the beginning of its error messages
  class_names: tuple[str, ...]  # by label; () without labels, or if nothing says
  fingerprint: str  # 16 hex digits that identify the data, without reading images

  def __len__(self) -> int:
    """Returns the number of records."""

  def __getitem__(self, index: int) -> dict:
    """Returns {"image": encoded bytes or uint8 [H, W, 3], "label": int, -1 = none}."""

  def name(self, index: int) -> str:
    """Returns file, or shard and position, for a log line."""


def open_source(spec: str, *, field: str) -> Source:
  """Opens the source that one config string names.

  Args:
    spec: "folder:PATH", "tfds:NAME:SPLIT", "arrayrecord:GLOB", "embedded:digits:SPLIT".
    field: config path of `spec`, such as "config.data.source".

  Raises:
    errors.UserError: nothing of that kind is there, or it holds no images.
  """
  where = f'{field}="{spec}"'
  kind, _, rest = spec.partition(":")
  # NAME may carry a version and SPLIT a range: "tfds:mnist:3.0.1:train[:1000]".
  tfds_name = re.fullmatch(r"(.+):((?:[^:\[\]]|\[[^\[\]]*\])+)", rest)
  if kind == "folder" and rest:
    return FolderSource(os.path.expanduser(rest), where)
  if kind == "arrayrecord" and rest:
    return shards.ArrayRecordSource(os.path.expanduser(rest), where)
  if kind == "tfds" and tfds_name:
    return shards.TfdsSource(*tfds_name.groups(), where)
  if spec in ("embedded:digits:train", "embedded:digits:test"):
    return DigitsSource(rest.removeprefix("digits:"), where)
  raise errors.UserError(
    f"{where} must be folder:PATH, tfds:NAME:SPLIT, arrayrecord:GLOB, "
    f"embedded:digits:train or embedded:digits:test{_guess(spec)}"
  )


def _guess(spec: str) -> str:
  """What somebody may have meant who left out the kind of a source; often nothing."""
  path = os.path.expanduser(spec)
  if any(".array_record" in os.path.basename(found) for found in glob.glob(path)):
    return f"; did you mean arrayrecord:{spec}?"
  return f"; did you mean folder:{spec}?" if os.path.isdir(path) else ""


class FolderSource:
  """Images below a folder, in sorted order.

  If images lie only in sub-folders, the sorted names of those are the classes. One
  image directly in the folder makes it flat: nothing has a label. Hidden files and
  folders are left out.
  """

  def __init__(self, root: str, where: str):
    """Lists the images."""
    self.where = where
    self._root = root
    self._names = _list_images(root, where)
    tops = [name.partition(os.sep)[0] for name in self._names]
    flat = any(os.sep not in name for name in self._names)
    classes = [] if flat else sorted(set(tops))
    label = {name: i for i, name in enumerate(classes)}
    self._labels = np.array([label.get(top, -1) for top in tops], np.int32)
    self.class_names = tuple(classes)
    # lstat: a dangling link is an unreadable record later, not an error here.
    identity = "\n".join(
      f"{name} {os.lstat(os.path.join(root, name)).st_size}" for name in self._names
    )
    self.fingerprint = hashlib.sha256(os.fsencode(identity)).hexdigest()[:16]

  def __len__(self) -> int:
    """Returns the number of images."""
    return len(self._names)

  def __getitem__(self, index: int) -> dict:
    """Reads one file."""
    with open(os.path.join(self._root, self._names[index]), "rb") as file:
      return {"image": file.read(), "label": int(self._labels[index])}

  def name(self, index: int) -> str:
    """Returns the file's path."""
    path = os.path.join(self._root, self._names[index])
    return os.fsencode(path).decode(errors="backslashreplace")


def _list_images(root: str, where: str) -> list[str]:
  """Returns the sorted paths of the images below `root`, relative to it."""
  if not os.path.exists(root):
    raise errors.UserError(f"{where} does not exist; give a folder of images")
  if not os.path.isdir(root):
    raise errors.UserError(f"{where} is not a folder; give the one it lies in")

  def fail(error: OSError):
    raise errors.UserError(f"{where} cannot be listed: {error}; check permissions")

  names, files = [], 0
  for folder, subfolders, entries in os.walk(root, onerror=fail, followlinks=True):
    subfolders[:] = [name for name in subfolders if not name.startswith(".")]
    files += len(entries)
    names += [
      os.path.relpath(os.path.join(folder, entry), root)
      for entry in entries
      if entry.lower().endswith(ENDINGS) and not entry.startswith(".")
    ]
  if not names:
    holds = f"{files} files but no image" if files else "no file at all"
    raise errors.UserError(f"{where} holds {holds}; images end in {', '.join(ENDINGS)}")
  return sorted(names)


class DigitsSource:
  """scikit-learn's handwritten digits, grey, 8 x 8 pixels, in memory."""

  class_names = tuple("0123456789")

  def __init__(self, split: str, where: str):
    """Loads the split."""
    from sklearn import datasets  # Here: it costs a second, and few runs need it.

    digits = datasets.load_digits()
    rows = slice(-DIGITS_TEST, None) if split == "test" else slice(-DIGITS_TEST)
    grey = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)
    self.where = where
    self._split = split
    self._images = np.repeat(grey[..., None], 3, axis=-1)  # [len, 8, 8, 3]
    self._labels = digits.target[rows]
    self.fingerprint = hashlib.sha256(self._images.tobytes()).hexdigest()[:16]

  def __len__(self) -> int:
    """Returns 1347 for train, 450 for test."""
    return len(self._images)

  def __getitem__(self, index: int) -> dict:
    """Returns one digit, not encoded."""
    return {"image": self._images[index], "label": int(self._labels[index])}

  def name(self, index: int) -> str:
    """Returns split and position."""
    return f"digits:{self._split}#{index}"
