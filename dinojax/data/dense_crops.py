"""Training batches of images with maps: random crops of both, endless.

Source: DINOv3's training of linear layers on patches, as in the public code: an image
is resized at random, keeping its aspect, cropped at random, mirrored, and its colours
are jittered. Where an image is smaller than the crop, the rest is black and counts
nowhere.
DIFFERS: images are resized by antialiased bicubic, as all are here. Brightness,
contrast, saturation and hue change together, in one of two crops, and hue by mmseg's
range: that of the public code is the full circle, surely by mistake.

The batch of step k is a pure function of (seed, k), for any number of workers and
hosts.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from dinojax.data import (
  arrays,
  bad_records,
  dense_records,
  label_maps,
  labelled_batches,
  mixture,
  photometric,
  prefetch,
)

TRIES = 10  # crops drawn before one that is mostly of one class is taken


@dataclasses.dataclass(frozen=True)
class Crop:
  """A kind of crops.

  side: S, pixels. scale: range of the image's shorter side, in S. flip_prob: that it is
  mirrored. jitter: of colours. largest: share of the labelled pixels that one value of
  a label map may have; 1: any.
  """

  side: int
  scale: tuple[float, float]
  flip_prob: float
  jitter: photometric.Jitter
  largest: float = 1.0


def sample(
  rng: np.random.Generator, pixels: np.ndarray, values: np.ndarray, kind: Crop, *, fill
) -> tuple[np.ndarray, np.ndarray]:
  """One crop of an image and its map.

  Args:
    rng: the only source of randomness.
    pixels: [H, W, C].
    values: [h, w], lying over the image.
    kind: of the crop.
    fill: value of the map that counts nowhere.

  Returns:
    [S, S, C], and [S, S] of the map's type.
  """
  cv2.setNumThreads(0)  # The input worker processes already fill the cores.
  side, size = kind.side, np.array(pixels.shape[:2])
  scale = rng.uniform(*kind.scale) * side / size.min()
  resized = np.maximum((size * scale + 1e-6).astype(int), 1)  # (rows, columns)
  span = np.minimum(side, resized)
  for _ in range(TRIES):
    start = rng.integers(resized - span, endpoint=True)
    rows, columns = (
      label_maps.centres(n, total, (begin, begin + length))
      for n, total, begin, length in zip(
        values.shape, resized, start, span, strict=True
      )
    )
    cropped = values[rows[:, None], columns]
    if kind.largest >= 1 or _largest(cropped, fill) <= kind.largest:
      break
  box = (*(start / resized * size)[::-1], *((start + span) / resized * size)[::-1])
  image = np.zeros((side, side, pixels.shape[2]), pixels.dtype)
  found = np.full((side, side), fill, values.dtype)
  part = arrays.resized(pixels, tuple(span[::-1].tolist()), tuple(map(float, box)))
  image[: span[0], : span[1]] = _jitter(rng, part, kind.jitter)
  found[: span[0], : span[1]] = cropped
  if rng.random() < kind.flip_prob:
    image, found = image[:, ::-1], found[:, ::-1]
  return np.ascontiguousarray(image), np.ascontiguousarray(found)


def _largest(values: np.ndarray, fill: float) -> float:
  """The share of the most frequent value among those that count; 0 if none does."""
  _, counts = np.unique(values[values != fill], return_counts=True)
  return counts.max() / counts.sum() if counts.size else 0.0


def _jitter(rng, pixels, jitter):
  rgb = pixels.dtype == np.uint8 and pixels.shape[-1] == 3
  if rng.random() >= jitter.prob or not rgb:  # of other images colours mean more
    return pixels
  strengths = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
  draws = 2 * rng.random(4) - 1
  *factors, turn = (np.array((1, 1, 1, 0)) + draws * strengths).tolist()
  luma = photometric.mean_luma(pixels)
  return cv2.transform(pixels, photometric.color_matrix(luma, *factors, turn))


def open_batches(
  data: mixture.Mixture,
  *,
  seed: int,
  batch_size: int,
  rows: Sequence[int],
  maps: dense_records.Kind,
  kind: Crop,
  workers: int,
) -> prefetch.Batches:
  """Starts the endless stream of this process's slice of the batches.

  Args:
    data: records; corrupt ones are substituted by others.
    seed: of order and crops.
    batch_size: images of the global batch.
    rows: positions in the global batch that this process holds.
    maps: of the records.
    kind: of crops.
    workers: processes; 0 reads in a thread of this one.

  Returns:
    Batches, to be closed, of b = len(rows), in the order of `rows`: image
    [b, S, S, C], map [b, S, S], bad_records [b], a `bad_records.REPORT` of each record.

  Raises:
    errors.UserError: while iterating, if a record and all its substitutes are bad.
  """
  crops = data.order(seed).random_map(_Read(data, maps, kind))
  steps = labelled_batches.Steps(crops, tuple(rows), batch_size)
  return prefetch.Batches(steps[0:], workers)


@dataclasses.dataclass(frozen=True)
class _Read:
  """Index of a record -> its crop and that of its map."""

  data: mixture.Mixture
  maps: dense_records.Kind
  kind: Crop

  def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    source, record = self.data.locate(int(index))
    pair, reason = bad_records.make_or_substitute(source, record, make=self.maps.read)
    image, values = sample(rng, *pair, self.kind, fill=self.maps.FILL)
    bad = bad_records.report(*(() if reason is None else (index, reason)))
    return {"image": image, "map": values, "bad_records": bad}
