"""Labelled training batches: a random crop of each image, and its class or label map.

The batch of step k is a pure function of (seed, k), as in train_batches.py, for any
number of workers and hosts.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import grain
import numpy as np

from dinojax.data import (
  augment,
  bad_records,
  dense_records,
  geometry,
  images,
  label_maps,
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
  probed = images.probe(image, layout)
  warp = augment.sample_warp(rng, probed.height, probed.width, kind)
  return _crop_at(probed, warp, kind, max_pixels, layout)


def crop_pair(
  rng: np.random.Generator,
  record: dict,
  kind: augment.Crop,
  maps: dense_records.LabelMaps,
) -> tuple[np.ndarray, np.ndarray]:
  """The same crop of an image and of its label map, [S, S, C] and [S, S].

  A pixel of the crop has the class at its centre.

  Args:
    rng: as of `crop_image`, which draws the same crop.
    record: of a source with label maps.
    kind: of `random_crop`.
    maps: how image and map are read.

  Raises:
    ValueError: one cannot be decoded, or they do not fit each other.
  """
  probed = images.probe(record["image"], maps.layout)
  values = maps.values(record, probed.height, probed.width)
  warp = augment.sample_warp(rng, probed.height, probed.width, kind)
  centres = np.arange(kind.size) + 0.5
  x, y, w = np.einsum(
    "cd,dhw->chw", warp, [*np.meshgrid(centres, centres), np.ones((kind.size,) * 2)]
  )
  rows, columns = (
    np.clip((at / w * count / size).astype(int), 0, count - 1)
    for at, count, size in zip(
      (y, x), values.shape, (probed.height, probed.width), strict=True
    )
  )
  crop = _crop_at(probed, warp, kind, maps.max_pixels, maps.layout)
  return crop, values[rows, columns]


def _crop_at(probed, warp, kind, max_pixels, layout) -> np.ndarray:
  cv2.setNumThreads(0)  # The input worker processes already fill the cores.
  halvings = augment.halvings([geometry.scale(warp, kind.size)])
  pixels, halved = probed.decode(halvings, alpha=True, max_pixels=max_pixels)
  crop = np.empty((kind.size, kind.size, layout.channels), layout.dtype)
  for part, level in resample.levels(pixels, halved, layout.channels):
    made, variance = resample.warp_crop(level, warp, kind.size, sigma=0.0)
    made = photometric.smooth(made, variance=variance, kernel=kind.blur.kernel)
    crop[..., part] = made.reshape(crop[..., part].shape)
  return crop


class Maps(NamedTuple):
  """Label maps of a source: C, and pixels of a patch's side."""

  num_classes: int
  patch_size: int


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
  maps: Maps | None = None,
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
    maps: what is made of label maps; None: nothing.

  Returns:
    Batches, to be closed, of b = len(rows), in the order of `rows`: image
    [b, S, S, C], label int32 [b], -1 where there is none, or with `maps` float32 [b, N,
    classes], the share of each class in a patch, see `label_maps.patch_shares`,
    bad_records [b], a `bad_records.REPORT` of each record.

  Raises:
    errors.UserError: while iterating, if a record and all its substitutes are bad.
  """
  crops = data.order(seed).random_map(_Crop(data, kind, max_pixels, layout, maps))
  steps = Steps(crops, tuple(rows), batch_size)
  return prefetch.Batches(steps[start_step:], workers)


@dataclasses.dataclass(frozen=True)
class _Crop:
  """Index of a record -> its crop and label."""

  data: mixture.Mixture
  kind: augment.Crop
  max_pixels: int
  layout: layouts.Layout
  maps: Maps | None

  def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    source, record = self.data.locate(int(index))
    (crop, label), reason = bad_records.make_or_substitute(
      source, record, make=functools.partial(self._make, rng)
    )
    bad = bad_records.report(*(() if reason is None else (index, reason)))
    return {"image": crop, "label": label, "bad_records": bad}

  def _make(self, rng, record) -> tuple[np.ndarray, np.ndarray]:
    """A crop, and its class or the shares of the classes in its patches."""
    how = dict(max_pixels=self.max_pixels, layout=self.layout)
    if self.maps is None:
      crop = crop_image(rng, record["image"], self.kind, **how)
      return crop, np.int32(record["label"])
    maps = dense_records.LabelMaps(self.maps.num_classes, **how)
    crop, square = crop_pair(rng, record, self.kind, maps)
    return crop, label_maps.patch_shares(square, **self.maps._asdict())


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
