"""Batches of images with label maps: one pass over a source, in order, all squares.

Image and map are stretched to a square as a whole, so that no pixel is left out.
"""

import dataclasses
from collections.abc import Callable, Sequence

import grain
import numpy as np

from dinojax.data import (
  arrays,
  bad_records,
  dense_records,
  images,
  label_maps,
  layouts,
  prefetch,
  sources,
)


def open_batches(
  source: sources.DenseSource,
  *,
  batch_size: int,
  rows: Sequence[int],
  side: int,
  num_classes: int,
  workers: int,
  max_pixels: int = images.MAX_PIXELS,
  layout: layouts.Layout = layouts.RGB,
  then: Callable[[dict], dict] = dict,
) -> prefetch.Batches:
  """Starts one pass, in order, over this process's slice of a source.

  Images are resized by antialiased bicubic, maps by the nearest pixel. Corrupt images
  and maps are skipped together.

  Args:
    source: records with label maps.
    batch_size: images of the global batch.
    rows: positions in the global batch, each in range(batch_size), that this process
      holds.
    side: S, pixels of a square's side.
    num_classes: larger values of a map are corrupt.
    workers: processes; 0 reads in a thread of this one.
    max_pixels: larger images and maps are corrupt, see `images.decode`.
    layout: of the images; others are corrupt.
    then: what the workers make of a batch; picklable.

  Returns:
    Batches, to be closed, of b = len(rows), in the order of `rows`, before `then`:
    image [b, S, S, C], label_map uint8 [b, S, S], all IGNORE beyond the end and
    for corrupt records, bad_records [b], a `bad_records.REPORT` of each record, index
    int32 [b], the record, -1 beyond the end.

  Raises:
    errors.TemporaryError: while iterating, if the data are out of reach.
  """
  settings = batch_size, tuple(rows), side, num_classes, max_pixels, layout
  steps = -(-len(source) // batch_size)
  batches = grain.MapDataset.range(steps).map(_DenseRows(source, *settings)).map(then)
  return prefetch.Batches(batches, min(workers, steps))


@dataclasses.dataclass(frozen=True)
class _DenseRows:
  """Step -> this process's rows of its batch."""

  source: sources.DenseSource
  batch_size: int
  rows: tuple[int, ...]
  side: int
  num_classes: int
  max_pixels: int
  layout: layouts.Layout

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    size, square = len(self.rows), (self.side, self.side)
    kind = dense_records.LabelMaps(self.num_classes, self.max_pixels, self.layout)
    batch = {
      "image": np.zeros((size, *square, self.layout.channels), self.layout.dtype),
      "label_map": np.full((size, *square), label_maps.IGNORE, np.uint8),
      "index": np.full(size, -1, np.int32),
      "bad_records": np.full(size, bad_records.report()),
    }
    for i, row in enumerate(self.rows):
      index = int(step) * self.batch_size + row
      if index >= len(self.source):
        continue
      batch["index"][i] = index
      try:
        pixels, label_map = kind.read(self.source[index])
      except sources.UNREADABLE as error:
        bad_records.raise_if_lost(error, self.source.where)
        batch["bad_records"][i] = bad_records.report(index, str(error))
      else:
        batch["image"][i] = arrays.resized(pixels, square)
        batch["label_map"][i] = label_maps.to_square(label_map, self.side)
    return batch
