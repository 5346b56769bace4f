"""Sources with label or depth maps of an evaluation: opened, and their classes read."""

import dataclasses
import logging
from collections.abc import Callable

import grain
import numpy as np
import tqdm

from dinojax import errors
from dinojax.data import bad_records, label_maps, prefetch, sources

BLOCK = 64  # label maps that a worker reads at a time


def open_sources(
  specs: dict[str, str], *, task: str, field: str = "--"
) -> dict[str, sources.DenseSource]:
  """Opens sources with label maps by the names of their flags, "train" first.

  Args:
    specs: by name.
    task: that needs them, for the message.
    field: what stands before the names there.

  Raises:
    UserError: one has no label maps, or names other classes than --train.
  """
  opened = {}
  for name, spec in specs.items():
    source = sources.open_source(spec, field=f"{field}{name}")
    if not isinstance(source, sources.DenseSource):
      raise errors.UserError(
        f"{source.where} has no label maps, which {task} needs; give a source such as"
        " folder:IMAGES?masks=FOLDER or embedded:scenes:train"
      )
    opened[name] = source
    known = opened["train"].map_classes
    if source.map_classes != known:
      raise errors.UserError(
        f"{source.where} has label maps of other classes ({_count(source)}) than"
        f" {opened['train'].where} ({_count(opened['train'])}); both must have the same"
      )
  return opened


def open_depth_sources(specs: dict[str, str]) -> dict[str, sources.DepthSource]:
  """Opens sources with depth maps by the names of their flags, "train" first.

  Raises:
    UserError: one has no depth maps.
  """
  opened = {k: sources.open_source(x, field=f"--{k}") for k, x in specs.items()}
  for source in opened.values():
    if not isinstance(source, sources.DepthSource):
      raise errors.UserError(
        f"{source.where} has no depth maps, which depth needs; give a source such as"
        " folder:IMAGES?depth=FOLDER or embedded:depth:train"
      )
  return opened


def class_names(
  opened: dict[str, sources.DenseSource], *, workers: int, progress: Callable[[], None]
) -> tuple[str, ...]:
  """The classes by value of the label maps; numbers where no source names them.

  Then worker processes read all label maps for the values that occur, and a warning
  names those that "train" lacks.

  Args:
    opened: of `open_sources`.
    workers: processes; 0: a thread of this one.
    progress: called after every BLOCK of label maps.

  Raises:
    UserError: of one of the sources, no readable label map has a class.
  """
  if names := opened["train"].map_classes:
    return names
  found = {k: _present(k, source, workers, progress) for k, source in opened.items()}
  for name, present in found.items():
    if not present.any():
      raise errors.UserError(
        f"{opened[name].where}: no label map is readable and has a pixel of a class;"
        f" values up to {label_maps.IGNORE - 1} number classes"
      )
    if (absent := np.flatnonzero(present & ~found["train"])).size:
      logging.warning(
        "%s has pixels of class %s, of which %s has none: no head can learn it, and its"
        " IoU of 0 is part of the mean",
        *(opened[name].where, ", ".join(map(str, absent)), opened["train"].where),
      )
  return tuple(map(str, range(max(np.flatnonzero(x)[-1] for x in found.values()) + 1)))


def _count(source: sources.DenseSource) -> str:
  names = source.map_classes
  return f"{len(names)}, from {names[0]!r} on" if names else "without names"


def _present(name, source, workers, progress) -> np.ndarray:
  """Which classes occur in any label map: bool [IGNORE]."""
  blocks = grain.MapDataset.range(-(-len(source) // BLOCK)).map(_Present(source))
  batches = prefetch.Batches(blocks, min(workers, len(blocks)))
  title, found = f"label maps of --{name}", np.zeros(label_maps.IGNORE, bool)
  try:
    for block in tqdm.tqdm(
      batches, title, total=len(blocks), leave=False, disable=None
    ):
      found |= block["present"]
      progress()
  finally:
    batches.close()
  return found


@dataclasses.dataclass(frozen=True)
class _Present:
  """Number of a block -> which classes occur in its label maps: bool [IGNORE]."""

  source: sources.DenseSource

  def __call__(self, block: int) -> dict[str, np.ndarray]:
    start = int(block) * BLOCK
    counts = np.zeros(label_maps.IGNORE + 1, np.int64)
    for index in range(start, min(start + BLOCK, len(self.source))):
      try:
        values = label_maps.decode(self.source[index]["label_map"])
      except sources.UNREADABLE as error:  # reported when the image is read
        bad_records.raise_if_lost(error, self.source.where)
        continue
      counts += np.bincount(values.ravel(), minlength=len(counts))
    return {"present": counts[: label_maps.IGNORE] > 0}
