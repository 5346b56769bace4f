"""Images below a folder, with maps of the same names below another: classes, depth."""

import hashlib
import math
import os
import re

import numpy as np

from dinojax import errors
from dinojax.data import depth_maps, files, folder, images, label_maps, walk

SCALE = 0.001  # metres of a unit of a depth map, as of NYU and of most cameras


def open_folder(spec: str, where: str) -> "folder.FolderSource | PairedFolders":
  """Opens "IMAGES", "IMAGES?masks=FOLDER&ignore=0" or "IMAGES?depth=FOLDER&scale=1"."""
  parsed = re.fullmatch(r"(.*?)\?(masks|depth)=(.*?)(?:&(ignore|scale)=(.*))?", spec)
  if not parsed:
    return folder.FolderSource(spec, where)
  found, kind, maps, option, value = parsed.groups()
  if found and maps and kind == "masks" and option in (None, "ignore"):
    if option is None or _is_byte(value):
      return MaskedFolderSource(found, maps, where, None if not option else int(value))
  elif found and maps and kind == "depth" and option in (None, "scale"):
    scale = _positive(value) if option else SCALE
    if scale:
      return DepthFolderSource(found, maps, where, scale)
  raise errors.UserError(
    f"{where} must be folder:IMAGES?masks=FOLDER, perhaps with &ignore=0 behind for a"
    " value that is no class, or folder:IMAGES?depth=FOLDER, perhaps with"
    f" &scale={SCALE:g} for metres of a unit"
  )


def _is_byte(text: str) -> bool:
  return text.isascii() and text.isdecimal() and int(text) < 256


def _positive(text: str) -> float | None:
  try:
    value = float(text)
  except ValueError:
    return None
  return value if 0 < value < math.inf else None


class PairedFolders:
  """The images below a folder that have a map, in sorted order.

  The map of a/b.jpg is the file a/b.png, or one of other endings, below the folder of
  maps. Images without one, and maps without an image, are left out. Labels are those of
  folder.py.
  """

  WHAT, FIELD, ENDINGS = "map", "maps", None

  def __init__(self, images: str, maps: str, where: str, salt: str):
    """Lists images and maps, and finds the pairs; salt: what else changes the maps."""
    self.where = where
    self._images = folder.FolderSource(images, where)
    shown_maps = f"{self.FIELD}={errors.printable(maps)}"
    listed = folder.FolderSource(maps, f"{where}: {shown_maps}", self.ENDINGS)
    self._root = os.path.expanduser(maps)
    named = {_stem(path): path for path in listed.paths}
    shown = _without_maps(self._images.paths, os.path.expanduser(images), listed, maps)
    pairs = [(i, named[stem]) for i, stem in shown if stem in named]
    if not pairs:
      first = errors.printable(shown[0][1]) if shown else "a"
      raise errors.UserError(
        f"{where}: none of {len(shown):,} images has a {self.WHAT} of its name, such as"
        f" {first}.png below {shown_maps}"
      )
    self._index, self._maps = map(list, zip(*pairs, strict=True))
    self.labels = self._images.labels[self._index]
    self.class_names = self._images.class_names
    notes, found = list(self._images.notes), {_stem(path) for path in self._maps}
    alone = [stem for _, stem in shown if stem not in named]
    unused = [path for stem, path in named.items() if stem not in found]
    if alone:
      notes.append(f"leaves out {walk.some(alone, 'image')} without a {self.WHAT}")
    if unused:
      notes.append(f"leaves out {walk.some(unused, self.WHAT)} without an image")
    self.notes = tuple(notes)
    digest = hashlib.sha256(f"{salt} {listed.fingerprint}".encode())
    self.fingerprint = f"{self._images.fingerprint} maps={digest.hexdigest()[:16]}"

  def __len__(self) -> int:
    """Returns the number of pairs."""
    return len(self._index)

  def name(self, index: int) -> str:
    """Returns the image's path."""
    return self._images.name(self._index[index])

  def _read(self, index: int) -> tuple[dict, bytes]:
    """The record of an image, and the content of its map."""
    content = files.read(os.path.join(self._root, self._maps[index]))
    return self._images[self._index[index]], content


class MaskedFolderSource(PairedFolders):
  """Images with label maps, PNG files."""

  WHAT, FIELD = "label map", "masks"
  map_classes = ()

  def __init__(self, images: str, masks: str, where: str, ignore: int | None):
    """ignore: a value that means no class, besides that of label_maps.py."""
    self._ignore = ignore
    super().__init__(images, masks, where, str(ignore))

  def __getitem__(self, index: int) -> dict:
    """Reads an image and its label map."""
    record, label_map = self._read(index)
    if self._ignore is not None:
      values = label_maps.decode(label_map)
      label_map = np.where(values == self._ignore, np.uint8(label_maps.IGNORE), values)
    return record | {"label_map": label_map}


class DepthFolderSource(PairedFolders):
  """Images with depth maps, see depth_maps.py."""

  WHAT, FIELD, ENDINGS = "depth map", "depth", (depth_maps.ENDINGS,)
  depth_unit = "m"

  def __init__(self, images: str, depth: str, where: str, scale: float):
    """scale: metres of a unit of a PNG."""
    self._scale = scale
    super().__init__(images, depth, where, f"{scale:g}")

  def __getitem__(self, index: int) -> dict:
    """Reads an image and its depth map."""
    record, content = self._read(index)
    metres = depth_maps.decode(
      content,
      name=self._maps[index],
      scale=self._scale,
      max_pixels=images.MAX_PIXELS,
    )
    return record | {"depth_map": metres}


def _stem(path: str) -> str:
  return os.path.splitext(path)[0]


def _without_maps(
  paths: list[str], root: str, maps: folder.FolderSource, below: str
) -> list[tuple[int, str]]:
  """Place and name, without ending, of those images that are no maps themselves.

  The folder of maps, `below`, may lie below that of the images.
  """
  below = os.path.relpath(os.path.expanduser(below), root)
  own = {os.path.normpath(os.path.join(below, path)) for path in maps.paths}
  return [(i, _stem(path)) for i, path in enumerate(paths) if path not in own]
