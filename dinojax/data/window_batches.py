"""Windows that slide over images, with their maps at their own size, one pass.

An image is resized so that its shorter side is S, and cut into squares of S along its
longer side, whose starts are STRIDE * S apart, the last one at the end. All images of a
pass have the same number of windows along the same side; `group` finds such parts.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grain
import numpy as np

from dinojax.data import (
  arrays,
  bad_records,
  dense_records,
  images,
  parts,
  prefetch,
  sources,
)

STRIDE = 2 / 3  # of a window's side, as 341 of 512 pixels in DINOv3
CANVAS = 64  # sides of maps are padded to multiples of it, so that few programs compile
BLOCK = 64  # records that a worker reads at a time


class Slide(NamedTuple):
  """windows: of an image. tall: whether they lie below each other. canvas: of maps."""

  windows: int
  tall: bool
  canvas: tuple[int, int]


def stride(side: int) -> int:
  """Pixels between the starts of two windows."""
  return max(int(STRIDE * side), 1)


def long_side(height: int, width: int, side: int) -> int:
  """Pixels of the longer side, where the shorter one has S."""
  return round(max(height, width) * side / min(height, width))


def starts(length: int, side: int) -> np.ndarray:
  """Where windows start along a side of `length` pixels, at least S: int [windows]."""
  count = -(-(length - side) // stride(side)) + 1
  return np.minimum(np.arange(count) * stride(side), length - side)


def group(
  source: sources.Source,
  maps: dense_records.Kind,
  *,
  side: int,
  workers: int,
  progress: Callable[[], None],
) -> list[tuple[Slide, parts.Part]]:
  """The records of a source, by how windows slide over them.

  Reads the headers of all records; corrupt ones are among the first part's, and are
  skipped when it is read.

  Args:
    source: images with maps.
    maps: their kind.
    side: S.
    workers: processes; 0: a thread of this one.
    progress: called after every BLOCK of records.
  """
  blocks = grain.MapDataset.range(-(-len(source) // BLOCK)).map(_Sizes(source, maps))
  batches, found = prefetch.Batches(blocks, min(workers, len(blocks))), []
  try:
    for block in batches:
      found.append(block["sizes"])
      progress()
  finally:
    batches.close()
  sizes = np.concatenate(found)  # [len, (H, W, h, w)]
  keys = {}
  for place, (height, width, *_) in enumerate(sizes.tolist()):
    count = len(starts(long_side(height, width, side), side))
    keys.setdefault((count, count > 1 and height > width), []).append(place)
  groups = []
  for (count, tall), places in sorted(keys.items()):
    largest = sizes[places, 2:].max(0)
    canvas = tuple((-(-largest // CANVAS) * CANVAS).tolist())
    groups.append((Slide(count, tall, canvas), parts.Part(source, places)))
  return groups


@dataclasses.dataclass(frozen=True)
class _Sizes:
  """Number of a block -> sizes of its images and maps, [b, 4]; 1 where corrupt."""

  source: sources.Source
  maps: dense_records.Kind

  def __call__(self, block: int) -> dict[str, np.ndarray]:
    first = int(block) * BLOCK
    found = np.ones((min(BLOCK, len(self.source) - first), 4), np.int64)
    for i in range(len(found)):
      try:
        record = self.source[first + i]
        probed, shape = (
          images.probe(record["image"], self.maps.layout),
          self.maps.shape(record),
        )
      except sources.UNREADABLE as error:  # reported when the image is read
        bad_records.raise_if_lost(error, self.source.where)
      else:
        found[i] = (probed.height, probed.width, *shape)
    return {"sizes": found}


def open_batches(
  source: sources.Source,
  maps: dense_records.Kind,
  slide: Slide,
  *,
  side: int,
  batch_size: int,
  rows: Sequence[int],
  workers: int,
) -> prefetch.Batches:
  """Starts one pass, in order, over this process's slice of a part.

  Args:
    source: one of the parts of `group`.
    maps: their kind.
    slide: of the part, with n windows and a canvas of [H, W].
    side: S.
    batch_size: images of the global batch.
    rows: positions in the global batch that this process holds.
    workers: processes; 0 reads in a thread of this one.

  Returns:
    Batches, to be closed, of b = len(rows): windows [b, n, S, S, C], map
    [b, H, W], with FILL beyond its own size, size int32 [b, 3]: rows and columns of the
    map, and pixels of the image's longer side where the shorter one has S; index int32
    [b], -1 beyond the end, bad_records [b].
  """
  steps = -(-len(source) // batch_size)
  read = _Windows(source, maps, slide, side, batch_size, tuple(rows))
  batches = grain.MapDataset.range(steps).map(read)
  return prefetch.Batches(batches, min(workers, steps))


@dataclasses.dataclass(frozen=True)
class _Windows:
  """Step -> this process's rows of its batch."""

  source: sources.Source
  maps: dense_records.Kind
  slide: Slide
  side: int
  batch_size: int
  rows: tuple[int, ...]

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    channels, dtype = self.maps.layout
    count, side, slide = len(self.rows), self.side, self.slide
    batch = {
      "windows": np.zeros((count, slide.windows, side, side, channels), dtype),
      "map": np.full((count, *slide.canvas), self.maps.FILL, self.maps.DTYPE),
      "size": np.tile(np.array([1, 1, side], np.int32), (count, 1)),
      "index": np.full(count, -1, np.int32),
      "bad_records": np.full(count, bad_records.report()),
    }
    for i, row in enumerate(self.rows):
      index = int(step) * self.batch_size + row
      if index >= len(self.source):
        continue
      batch["index"][i] = index
      try:
        pixels, values = self.maps.read(self.source[index])
      except sources.UNREADABLE as error:
        bad_records.raise_if_lost(error, self.source.where)
        batch["bad_records"][i] = bad_records.report(index, str(error))
        continue
      length = long_side(*pixels.shape[:2], side)
      batch["windows"][i] = cut(pixels, length, side, tall=slide.tall)
      batch["map"][i, : values.shape[0], : values.shape[1]] = values
      batch["size"][i] = (*values.shape, length)
    return batch


def cut(pixels: np.ndarray, length: int, side: int, *, tall: bool) -> np.ndarray:
  """The windows of an image, [n, S, S, C], antialiased.

  Args:
    pixels: [H, W, C].
    length: pixels of the longer side, where the shorter one has S.
    side: S.
    tall: whether the longer side is the height.
  """
  height, width = pixels.shape[:2]
  found = []
  for start in starts(length, side).tolist():
    span = start / length, (start + side) / length
    box = (0, span[0] * height, width, span[1] * height)
    if not tall:
      box = (span[0] * width, 0, span[1] * width, height)
    found.append(arrays.resized(pixels, (side, side), box))
  return np.stack(found)
