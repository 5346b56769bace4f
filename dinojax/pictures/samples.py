"""Samples: some images of a source, evenly spaced, as a network sees them."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from dinojax.data import bad_records, eval_batches, images, layouts, sources

NAME = 80  # characters of a name; the longest file names have 255


@dataclasses.dataclass(frozen=True)
class Chosen:
  """Some records of a source, as a source; picklable for worker processes."""

  source: sources.Source
  indices: tuple[int, ...]

  @property
  def where(self) -> str:
    """As of the source."""
    return self.source.where

  @property
  def class_names(self) -> tuple[str, ...]:
    """As of the source."""
    return self.source.class_names

  @property
  def labels(self) -> np.ndarray | None:
    """Of the chosen records, if known without reading them."""
    labels = self.source.labels
    return None if labels is None else labels[list(self.indices)]

  @property
  def fingerprint(self) -> str:
    """As of the source."""
    return self.source.fingerprint

  @property
  def notes(self) -> tuple[str, ...]:
    """As of the source."""
    return self.source.notes

  def __len__(self) -> int:
    """Returns the number of chosen records."""
    return len(self.indices)

  def __getitem__(self, index: int) -> dict:
    """Returns record `index` of the chosen ones."""
    return self.source[self.indices[index]]

  def name(self, index: int) -> str:
    """Returns the name of record `index` of the chosen ones."""
    return self.source.name(self.indices[index])


def evenly(source: sources.Source, count: int) -> Chosen:
  """At most `count` records, evenly spaced from the first to the last."""
  count = min(count, len(source))
  places = np.linspace(0, len(source) - 1, count).round().astype(int)
  return Chosen(source, tuple(dict.fromkeys(places.tolist())))


def short_name(source: sources.Source, index: int) -> str:
  """A record's name without its folders, and not too long."""
  name = source.name(index).rpartition("/")[2]
  return name if len(name) <= NAME else f"...{name[-NAME:]}"


def batches(
  source: sources.Source,
  *,
  batch_size: int,
  resize: int,
  crop: int,
  workers: int,
  max_pixels: int = images.MAX_PIXELS,
  layout: layouts.Layout = layouts.RGB,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the batches of `eval_batches` of a source, all rows of them.

  Corrupt images are logged, and not valid.
  """
  log = bad_records.Log("corrupt image left out of the pictures")
  opened = eval_batches.open_batches(
    source,
    batch_size=batch_size,
    rows=range(batch_size),
    resize=resize,
    crop=crop,
    workers=workers,
    max_pixels=max_pixels,
    layout=layout,
  )
  with contextlib.closing(opened):
    for batch in opened:
      for _, message in bad_records.messages(source, batch["bad_records"]):
        log.add(message)
      yield batch


def shared_batches(
  source: sources.Source,
  *,
  batch_size: int,
  crop: int,
  layout: layouts.Layout = layouts.RGB,
  **reading,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields `batches` that process 0 reads, on all processes alike.

  So all agree on which images are valid, and none waits for one that cannot read. Of
  several processes, where reading fails the images that are left are not valid.

  Args:
    source: of images.
    batch_size: as crop and the others of `batches`.
    crop: pixels of a side.
    layout: of the images.
    **reading: the other arguments of `batches`.
  """
  reading |= dict(batch_size=batch_size, crop=crop, layout=layout)
  if jax.process_count() == 1:
    yield from batches(source, **reading)
    return
  own = batches(source, **reading) if jax.process_index() == 0 else iter(())
  for _ in range(math.ceil(len(source) / batch_size)):
    batch = {
      "image": np.zeros((batch_size, crop, crop, layout.channels), layout.dtype),
      "label": np.full(batch_size, -1, np.int32),
      "index": np.full(batch_size, -1, np.int32),
      "valid": np.zeros(batch_size, bool),
    }
    try:
      read = next(own, None)
    except Exception as error:  # the others wait for this batch
      logging.warning("%s: left out of the pictures: %s", source.where, error)
      read = None
    if read:
      batch = {name: read[name] for name in batch}
    yield jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(batch))
