"""Evaluation batches: one pass over a source, in order, resized and centre-cropped."""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from dinojax import errors
from dinojax.data import (
  arrays,
  bad_records,
  class_labels,
  images,
  layouts,
  prefetch,
  sources,
)

MAX_LABEL = np.iinfo(np.int32).max


def open_batches(
  source: sources.Source,
  *,
  batch_size: int,
  rows: Sequence[int],
  resize: int,
  crop: int,
  workers: int,
  spans: Sequence[tuple[int, int]] | None = None,
  max_pixels: int = images.MAX_PIXELS,
  layout: layouts.Layout = layouts.RGB,
) -> prefetch.Batches:
  """Starts one pass, in order, over this process's slice of a source.

  Images are resized to `resize` along the shorter side, by antialiased bicubic, and
  cropped at the centre. Corrupt ones are skipped.

  Args:
    source: records.
    batch_size: images of the global batch.
    rows: positions in the global batch, each in range(batch_size), that this process
      holds.
    resize: pixels of the shorter side.
    crop: pixels of the crop's side, at most `resize`.
    workers: processes; 0 reads in a thread of this one.
    spans: (start, stop) of the records to read, span by span; each begins a batch, and
      its last one is padded. None: all of the source.
    max_pixels: larger images are corrupt, see `images.decode`.
    layout: of the images; others are corrupt.

  Returns:
    Batches, to be closed, of b = len(rows), in the order of `rows`:
    image [b, crop, crop, C], label int32 [b], -1 if there is none, index int32
    [b], the record, valid bool [b], False beyond the end of the span and for corrupt
    records, bad_records [b], a `bad_records.REPORT` of each record.

  Raises:
    errors.TemporaryError: while iterating, if the data are out of reach.
    errors.UserError: crop > resize.
  """
  if crop > resize:
    raise errors.UserError(f"crop={crop} must be at most resize={resize}; lower it")
  if spans is None:
    spans = [(0, len(source))]
  bounds = np.array(
    [(first, stop) for start, stop in spans for first in range(start, stop, batch_size)]
  )
  how = resize, crop, max_pixels, layout
  read_rows = _EvalRows(source, bounds, tuple(rows), *how)
  batches = grain.MapDataset.range(len(bounds)).map(read_rows)
  return prefetch.Batches(batches, min(workers, len(bounds)))


@dataclasses.dataclass(frozen=True)
class _EvalRows:
  """Step -> this process's rows of its evaluation batch.

  bounds: [S, 2] first record of each batch, and where the records of its span end.
  """

  source: sources.Source
  bounds: np.ndarray
  rows: tuple[int, ...]
  resize: int
  crop: int
  max_pixels: int
  layout: layouts.Layout

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    size, (channels, dtype) = len(self.rows), self.layout
    how = dict(max_pixels=self.max_pixels, layout=self.layout)
    batch = {
      "image": np.zeros((size, self.crop, self.crop, channels), dtype),
      "label": np.full(size, -1, np.int32),
      "index": np.full(size, -1, np.int32),
      "valid": np.zeros(size, bool),
      "bad_records": np.full(size, bad_records.report()),
    }
    first, stop = self.bounds[int(step)].tolist()
    for i, row in enumerate(self.rows):
      index = first + row
      if index >= stop:
        continue
      batch["index"][i] = index
      try:
        record = self.source[index]
        batch["label"][i] = _class(record["label"])
        image = images.decode(record["image"], **how)
      except sources.UNREADABLE as error:
        bad_records.raise_if_lost(error, self.source.where)
        if self.source.labels is not None:
          batch["label"][i] = self.source.labels[index]
        elif batch["label"][i] < 0:
          batch["label"][i] = _class(class_labels.of_error(error))
        batch["bad_records"][i] = bad_records.report(index, str(error))
      else:
        batch["image"][i] = _centre_crop(image, self.resize, self.crop)
        batch["valid"][i] = True
    return batch


def _class(label: int) -> int:
  """A label that numbers a class; larger numbers identify something else."""
  return label if 0 <= label <= MAX_LABEL else class_labels.NO_LABEL


def _centre_crop(image: np.ndarray, resize: int, crop: int) -> np.ndarray:
  """Resizes [H, W, C] to `resize` along the shorter side and crops the centre.

  Only the crop is computed: resized whole, one thin panorama would fill the memory.
  """
  height, width, _ = image.shape
  side = crop * min(height, width) / resize  # in pixels of the image
  left, top = (width - side) / 2, (height - side) / 2
  box = (left, top, left + side, top + side)
  return arrays.resized(image, (crop, crop), box)
