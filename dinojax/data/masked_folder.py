"""Images below a folder, with label maps of the same names below another."""

import hashlib
import os

import numpy as np

from dinojax import errors
from dinojax.data import files, folder, label_maps, walk

MASKS = "?masks="  # between the two folders
OTHER = "&ignore="  # before a value that means no class, besides that of label_maps.py


def open_folder(spec: str, where: str) -> "folder.FolderSource | MaskedFolderSource":
  """Opens "IMAGES", "IMAGES?masks=FOLDER" or "IMAGES?masks=FOLDER&ignore=0"."""
  images, mark, rest = spec.partition(MASKS)
  if not mark:
    return folder.FolderSource(spec, where)
  masks, given, value = rest.partition(OTHER)
  if not images or not masks or (given and not _is_byte(value)):
    raise errors.UserError(
      f"{where} must be folder:IMAGES{MASKS}FOLDER, perhaps with {OTHER}0 behind for a"
      " value that is no class"
    )
  return MaskedFolderSource(images, masks, where, int(value) if given else None)


def _is_byte(text: str) -> bool:
  return text.isascii() and text.isdecimal() and int(text) < 256


class MaskedFolderSource:
  """The images below a folder that have a label map, in sorted order.

  The label map of a/b.jpg is the file a/b.png below the folder of label maps. Images
  without one, and maps without an image, are left out. Labels are those of folder.py.
  """

  map_classes = ()

  def __init__(self, images: str, masks: str, where: str, ignore: int | None):
    """Lists images and label maps, and finds the pairs; ignore: a value of no class."""
    self.where, self._ignore = where, ignore
    self._images = folder.FolderSource(images, where)
    maps = folder.FolderSource(masks, f"{where}: masks={errors.printable(masks)}")
    self._root = os.path.expanduser(masks)
    named = {_stem(path): path for path in maps.paths}
    shown = _without_maps(self._images.paths, os.path.expanduser(images), maps, masks)
    pairs = [(i, named[stem]) for i, stem in shown if stem in named]
    if not pairs:
      first = errors.printable(shown[0][1]) if shown else "a"
      raise errors.UserError(
        f"{where}: none of {len(shown):,} images has a label map of its name, such as"
        f" {first}.png below masks={errors.printable(masks)}"
      )
    self._index, self._maps = map(list, zip(*pairs, strict=True))
    self.labels = self._images.labels[self._index]
    self.class_names = self._images.class_names
    notes, found = list(self._images.notes), {_stem(path) for path in self._maps}
    alone = [stem for _, stem in shown if stem not in named]
    unused = [path for stem, path in named.items() if stem not in found]
    if alone:
      notes.append(f"leaves out {walk.some(alone, 'image')} without a label map")
    if unused:
      notes.append(f"leaves out {walk.some(unused, 'label map')} without an image")
    self.notes = tuple(notes)
    maps_digest = hashlib.sha256(f"{ignore} {maps.fingerprint}".encode())
    self.fingerprint = f"{self._images.fingerprint} maps={maps_digest.hexdigest()[:16]}"

  def __len__(self) -> int:
    """Returns the number of pairs."""
    return len(self._index)

  def __getitem__(self, index: int) -> dict:
    """Reads an image and its label map."""
    label_map = files.read(os.path.join(self._root, self._maps[index]))
    if self._ignore is not None:
      values = label_maps.decode(label_map)
      label_map = np.where(values == self._ignore, np.uint8(label_maps.IGNORE), values)
    return self._images[self._index[index]] | {"label_map": label_map}

  def name(self, index: int) -> str:
    """Returns the image's path."""
    return self._images.name(self._index[index])


def _stem(path: str) -> str:
  return os.path.splitext(path)[0]


def _without_maps(
  paths: list[str], root: str, maps: folder.FolderSource, masks: str
) -> list[tuple[int, str]]:
  """Place and name, without ending, of those images that are no label maps themselves.

  The folder of label maps may lie below that of the images.
  """
  below = os.path.relpath(os.path.expanduser(masks), root)
  own = {os.path.normpath(os.path.join(below, path)) for path in maps.paths}
  return [(i, _stem(path)) for i, path in enumerate(paths) if path not in own]
