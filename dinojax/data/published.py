"""Segmentation sets in the folders that they are published in: ADE20K, VOC, Cityscapes.

ADE20K is the ADEChallengeData2016 of the 150-class benchmark, where 0 is no class; of
Cityscapes the label ids are read, of which 19 are evaluated.
"""

import hashlib
import os
from collections.abc import Callable

import numpy as np

from dinojax import errors
from dinojax.data import files, folder, label_maps, walk

ADE20K_CLASSES = 150
ADE20K_SPLITS = {"train": "training", "val": "validation"}
ADE20K_NAMES = "objectInfo150.txt"  # a table with tabs between, of which one is "Name"
VOC_CLASSES = (
  *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car"),
  *("cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person"),
  *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOC_MAPS = {"trainaug": "SegmentationClassAug"}  # of other splits SegmentationClass
CITYSCAPES_CLASSES = {  # by label id
  **{7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole"},
  **{19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain"},
  **{23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus"},
  **{31: "train", 32: "motorcycle", 33: "bicycle"},
}
CITYSCAPES_SPLITS = ("train", "val")  # the labels of test are not published
IMAGE_END, MAP_END = "_leftImg8bit.png", "_gtFine_labelIds.png"


class PairedFiles:
  """Images with label maps, by pairs of paths; images have no labels."""

  class_names = ()
  labels = None

  def __init__(
    self,
    where: str,
    images: str,
    maps: str,
    map_of: Callable[[str], str],
    *,
    classes: tuple[str, ...],
    table: np.ndarray,
    listed: list[str] | None = None,
  ):
    """Lists both folders, and finds the pairs.

    Args:
      where: the beginning of an error's message.
      images: folder.
      maps: folder.
      map_of: of an image's path below its folder, that of its map.
      classes: by value, after `table`.
      table: uint8 [256], of values as they are stored.
      listed: the wanted images, without ending; None: all.

    Raises:
      UserError: a folder is missing, or there is no pair.
    """
    self.where, self.map_classes, self._table = where, classes, table
    found = folder.FolderSource(images, f"{where}: {errors.printable(images)}")
    known = folder.FolderSource(maps, f"{where}: {errors.printable(maps)}")
    self._roots, paths, held = (images, maps), found.paths, set(known.paths)
    notes = []
    if listed is not None:
      wanted = set(listed)
      paths = [path for path in paths if os.path.splitext(path)[0] in wanted]
      if missing := wanted.difference(os.path.splitext(path)[0] for path in paths):
        notes.append(f"leaves out {walk.some(list(missing), 'listed image')} not there")
    self._pairs = [(path, map_of(path)) for path in paths if map_of(path) in held]
    if alone := [path for path in paths if map_of(path) not in held]:
      notes.append(f"leaves out {walk.some(alone, 'image')} without a label map")
    if not self._pairs:
      first = errors.printable(map_of(paths[0])) if paths else "one"
      raise errors.UserError(
        f"{where}: none of {len(paths):,} images has its label map, such as {first}"
        f" below {errors.printable(maps)}"
      )
    self.notes = tuple(notes)
    text = repr((self._pairs, classes, known.fingerprint)).encode()
    self.fingerprint = (
      f"{found.fingerprint} maps={hashlib.sha256(text).hexdigest()[:16]}"
    )

  def __len__(self) -> int:
    """Returns the number of pairs."""
    return len(self._pairs)

  def __getitem__(self, index: int) -> dict:
    """Reads an image and its label map."""
    image, stored = (
      files.read(os.path.join(root, path))
      for root, path in zip(self._roots, self._pairs[index], strict=True)
    )
    values = self._table[label_maps.decode(stored)]
    return {"image": image, "label": -1, "label_map": values}

  def name(self, index: int) -> str:
    """Returns the image's path."""
    return errors.printable(os.path.join(self._roots[0], self._pairs[index][0]))


def open_ade20k(spec: str, where: str) -> PairedFiles:
  """Opens "FOLDER:SPLIT" of ADEChallengeData2016."""
  root, split = _parse(spec, where, "ade20k", tuple(ADE20K_SPLITS))
  split = ADE20K_SPLITS[split]
  table = (np.arange(256) - 1).astype(np.uint8)  # 0 to IGNORE
  return PairedFiles(
    where,
    os.path.join(root, "images", split),
    os.path.join(root, "annotations", split),
    lambda path: f"{os.path.splitext(path)[0]}.png",
    classes=_ade20k_names(root),
    table=table,
  )


def open_voc(spec: str, where: str) -> PairedFiles:
  """Opens "FOLDER:SPLIT" of a year of PASCAL VOC, such as VOCdevkit/VOC2012."""
  root, split = _parse(spec, where, "voc", None)
  lists = os.path.join(root, "ImageSets", "Segmentation")
  path = os.path.join(lists, f"{split}.txt")
  try:
    listed = files.read(path).decode().split()
  except (OSError, ValueError) as error:
    try:
      known = sorted(x[:-4] for x in os.listdir(lists) if x.endswith(".txt"))
    except OSError:
      known = []
    there = f"it has {', '.join(known)}" if known else "give a year's own folder"
    raise errors.UserError(
      f"{where}: {errors.printable(path)} cannot be read;"
      + errors.printable(f" {there}")
    ) from error
  return PairedFiles(
    where,
    os.path.join(root, "JPEGImages"),
    os.path.join(root, VOC_MAPS.get(split, "SegmentationClass")),
    lambda path: f"{os.path.splitext(path)[0]}.png",
    classes=VOC_CLASSES,
    table=np.arange(256, dtype=np.uint8),
    listed=listed,
  )


def open_cityscapes(spec: str, where: str) -> PairedFiles:
  """Opens "FOLDER:SPLIT" of Cityscapes, with leftImg8bit and gtFine below FOLDER."""
  root, split = _parse(spec, where, "cityscapes", CITYSCAPES_SPLITS)
  table = np.arange(256, dtype=np.uint8)  # what is no label id stays wrong
  table[: max(CITYSCAPES_CLASSES) + 1] = label_maps.IGNORE
  table[list(CITYSCAPES_CLASSES)] = np.arange(len(CITYSCAPES_CLASSES))
  return PairedFiles(
    where,
    os.path.join(root, "leftImg8bit", split),
    os.path.join(root, "gtFine", split),
    lambda path: path.removesuffix(IMAGE_END) + MAP_END,
    classes=tuple(CITYSCAPES_CLASSES.values()),
    table=table,
  )


def _parse(
  spec: str, where: str, kind: str, splits: tuple[str, ...] | None
) -> tuple[str, str]:
  """Folder and split; UserError if there are none such."""
  root, _, split = spec.rpartition(":")
  if not root or not split or os.sep in split or (splits and split not in splits):
    known = f", SPLIT one of {', '.join(splits)}" if splits else ""
    raise errors.UserError(f"{where} must be {kind}:FOLDER:SPLIT{known}")
  files.refuse_bucket(root, where)
  return os.path.expanduser(root), split


def _ade20k_names(root: str) -> tuple[str, ...]:
  """Names of the classes, from the table that comes with them, or else numbers."""
  numbers = tuple(map(str, range(1, ADE20K_CLASSES + 1)))
  try:
    content = files.read(os.path.join(root, ADE20K_NAMES)).decode()
  except (OSError, ValueError):
    return numbers
  header, *rows = (line.split("\t") for line in content.splitlines() if line.strip())
  header = [title.strip() for title in header]
  if "Name" not in header or len(rows) != ADE20K_CLASSES:
    return numbers
  place = header.index("Name")
  names = [row[place].partition(",")[0].strip() for row in rows if len(row) > place]
  return tuple(map(errors.printable, names)) if len(names) == len(rows) else numbers
