"""Labelled training batches: a random crop of each image, and its class.

The batch of step k is a pure function of (seed, k), as in train_batches.py, for any
number of workers and hosts.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import grain
import numpy as np

from dinojax.data import (
  augment,
  bad_records,
  geometry,
  images,
  layouts,
  mixture,
  photometric,
  prefetch,
  resample,
)

ASPECT = (3 / 4, 4 / 3)  # of a crop's box, as in torchvision
STILL = geometry.Geometry(rotate=0.0, shear=0.0, perspective=0.0, dihedral=False)
NO_JITTER = photometric.Jitter(0.0, 0.0, 0.0, 0.0, 0.0)
NO_BLUR = photometric.Blur(prob=0.0, sigma=(1.0, 1.0), kernel=9)


def random_crop(*, size: int, min_area: float, flip_prob: float) -> augment.Crop:
  """A random resized crop with a flip, and nothing else.

  Args:
    size: S, pixels of its side.
    min_area: the least share of the image that it shows; the most is all.
    flip_prob: probability that it is mirrored.
  """
  return augment.Crop(
    size=size,
    area=(min_area, 1.0),
    aspect=ASPECT,
    geometry=STILL,
    flip_prob=flip_prob,
    jitter=NO_JITTER,
    grey_prob=0.0,
    blur=NO_BLUR,
    solarize_prob=0.0,
  )


def crop_image(
  rng: np.random.Generator,
  image: bytes | np.ndarray,
  kind: augment.Crop,
  *,
  max_pixels: int = images.MAX_PIXELS,
  layout: layouts.Layout = layouts.RGB,
) -> np.ndarray:
  """One crop of an image, [S, S, C]; its colours stay as they are.

  Args:
    rng: the only source of randomness.
    image: an encoded image, or [H, W, C].
    kind: of `random_crop`.
    max_pixels: larger images are corrupt, see `images.decode`.
    layout: of the images.

  Raises:
    ValueError: the image cannot be decoded.
  """
  cv2.setNumThreads(0)  # The input worker processes already fill the cores.
  probed = images.probe(image, layout)
  warp = augment.sample_warp(rng, probed.height, probed.width, kind)
  halvings = augment.halvings([geometry.scale(warp, kind.size)])
  pixels, halved = probed.decode(halvings, alpha=True, max_pixels=max_pixels)
  crop = np.empty((kind.size, kind.size, layout.channels), layout.dtype)
  for part, level in resample.levels(pixels, halved, layout.channels):
    made, variance = resample.warp_crop(level, warp, kind.size, sigma=0.0)
    made = photometric.smooth(made, variance=variance, kernel=kind.blur.kernel)
    crop[..., part] = made.reshape(crop[..., part].shape)
  return crop


def open_batches(
  data: mixture.Mixture,
  *,
  seed: int,
  batch_size: int,
  rows: Sequence[int],
  kind: augment.Crop,
  workers: int,
  start_step: int,
  max_pixels: int = images.MAX_PIXELS,
  layout: layouts.Layout = layouts.RGB,
) -> prefetch.Batches:
  """Starts the endless stream of this process's slice of the batches.

  Every epoch is a new permutation of the records; batches run across epochs.

  Args:
    data: records; corrupt ones are substituted by others, see
      `bad_records.read_or_substitute`.
    seed: of order and crops.
    batch_size: images of the global batch.
    rows: positions in the global batch, each in range(batch_size), that this process
      holds.
    kind: of `random_crop`.
    workers: processes; 0 reads in a thread of this one.
    start_step: step of the first batch.
    max_pixels: larger images are corrupt.
    layout: of the images; others are corrupt.

  Returns:
    Batches, to be closed, of b = len(rows), in the order of `rows`: image
    [b, S, S, C], label int32 [b], -1 where there is none, bad_records [b], a
    `bad_records.REPORT` of each record.

  Raises:
    errors.UserError: while iterating, if a record and all its substitutes are bad.
  """
  crops = data.order(seed).random_map(_Crop(data, kind, max_pixels, layout))
  steps = Steps(crops, tuple(rows), batch_size)
  return prefetch.Batches(steps[start_step:], workers)


@dataclasses.dataclass(frozen=True)
class _Crop:
  """Index of a record -> its crop and label."""

  data: mixture.Mixture
  kind: augment.Crop
  max_pixels: int
  layout: layouts.Layout

  def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    source, record = self.data.locate(int(index))
    how = dict(max_pixels=self.max_pixels, layout=self.layout)
    crop, label, reason = bad_records.read_or_substitute(
      source, record, make=lambda image: crop_image(rng, image, self.kind, **how)
    )
    bad = bad_records.report(*(() if reason is None else (index, reason)))
    return {"image": crop, "label": np.int32(label), "bad_records": bad}


class Steps(grain.MapDataset):
  """Element k stacks those rows of step k that this process holds."""

  def __init__(self, crops: grain.MapDataset, rows: tuple[int, ...], batch_size: int):
    """crops: endless, of elements that are dicts of arrays; rows: of each batch."""
    super().__init__(crops)
    self._rows, self._batch_size = rows, batch_size

  def __len__(self) -> int:
    """Returns how many batches there are."""
    return len(self._parent) // self._batch_size

  def __getitem__(self, index: int | slice) -> dict[str, np.ndarray]:
    """Returns this process's slice of a batch."""
    if isinstance(index, slice):
      return self.slice(index)
    made = [self._parent[index * self._batch_size + row] for row in self._rows]
    return {name: np.stack([one[name] for one in made]) for name in made[0]}
