"""Labelled sources of an evaluation: opened, numbered alike, and their labels read."""

import dataclasses
from collections.abc import Callable

import grain
import numpy as np
import tqdm

from dinojax import errors
from dinojax.data import bad_records, classes, prefetch, sources

BLOCK = 256  # records that a worker reads at a time
MOST_CLASSES = 1 << 20  # larger labels identify something else, such as the image
TRIED = 16  # records, of which one has to be readable to see whether it has a label


def open_sources(
  specs: dict[str, str], *, field: str = "--"
) -> dict[str, sources.Source]:
  """Opens labelled sources by the names of their flags, "train" first.

  Labels are numbered as --train numbers its classes.

  Args:
    specs: by name.
    field: what stands before the names in messages.

  Raises:
    UserError: one has no labels, or a class that --train lacks.
  """
  opened = {}
  for name, spec in specs.items():
    source = sources.open_source(spec, field=f"{field}{name}")
    if not _is_labelled(source):
      raise errors.UserError(f"{source.where} has no labels; give a labelled source")
    opened[name] = classes.match(opened.get("train", source), source)
  return opened


def open_sets(
  sets: dict[str, dict[str, str]], *, field: str
) -> dict[str, dict[str, sources.Source]]:
  """Opens the sources of several data sets, by set and flag.

  Args:
    sets: sources by set and flag.
    field: what stands before the names in messages.

  Raises:
    UserError: some cannot be used; it names all, and what to do about the first.
  """
  opened, failed = {}, {}
  for data, specs in sets.items():
    try:
      opened[data] = open_sources(specs, field=field)
    except errors.UserError as error:
      failed[data] = error
  if not failed:
    return opened
  first, *others = failed
  text = str(failed[first])
  if others:
    text += f"; {', '.join(others)} cannot be opened either"
  if opened:
    text += f"; --sets={','.join(opened)} evaluates the others alone"
  raise errors.UserError(text) from failed[first]


def read(
  source: sources.Source, *, name: str, workers: int, progress: Callable[[], None]
) -> np.ndarray:
  """The label of each record, int [len(source)]; -1 for none and where it is corrupt.

  Where a source does not list its labels, worker processes read all records.

  Args:
    source: labelled.
    name: of the source, shown before the progress bar.
    workers: processes; 0: a thread of this one.
    progress: called after every BLOCK of records.
  """
  if source.labels is not None:
    return source.labels
  blocks = grain.MapDataset.range(-(-len(source) // BLOCK)).map(_Labels(source))
  batches = prefetch.Batches(blocks, min(workers, len(blocks)))
  bar = tqdm.tqdm(
    batches, f"labels of {name}", total=len(blocks), leave=False, disable=None
  )
  found = []
  try:
    for block in bar:
      found.append(block["labels"])
      progress()
  finally:
    batches.close()
  return np.concatenate(found)


def class_names(opened: dict[str, sources.Source], highest: int) -> tuple[str, ...]:
  """The names of the classes by label; numbers where no source names them.

  Args:
    opened: of `open_sources`.
    highest: the highest label.

  Raises:
    UserError: the labels are too large to number classes.
  """
  if names := max((source.class_names for source in opened.values()), key=len):
    return names
  if highest >= MOST_CLASSES:
    raise errors.UserError(
      f"labels go up to {highest:,}, more than number classes; give sources whose"
      " labels count classes from 0"
    )
  return tuple(map(str, range(1 + highest)))


def count(labels: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
  """The number of images of each class, int64 [len(names)]."""
  return np.bincount(labels[labels >= 0], minlength=len(names))


@dataclasses.dataclass(frozen=True)
class _Labels:
  """Number of a block -> the labels of its records."""

  source: sources.Source

  def __call__(self, block: int) -> dict[str, np.ndarray]:
    start = int(block) * BLOCK
    stop = min(start + BLOCK, len(self.source))
    found = [_label(self.source, i) for i in range(start, stop)]
    return {"labels": np.array([-1 if x is None else x for x in found], np.int64)}


def _label(source: sources.Source, index: int) -> int | None:
  """The label of a record; None if it cannot be read."""
  try:
    return source[index]["label"]
  except sources.UNREADABLE as error:
    bad_records.raise_if_lost(error, source.where)
    return None


def _is_labelled(source: sources.Source) -> bool:
  if source.class_names:
    return True
  found = [_label(source, i) for i in range(min(TRIED, len(source)))]
  known = [label for label in found if label is not None]
  return not known or max(known) >= 0
