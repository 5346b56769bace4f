"""Training batches: the batch of step k is a pure function of (seed, k).

Grain shuffles, reads, crops, groups and masks in worker processes, ahead of the
training step. Neither the number of workers, nor that of hosts, nor a restart changes
a batch, so a checkpoint needs no state of the input.

Where crops have several resolutions there is a whole stream for each row of sizes, and
step k reads from that of its row. Streams make nothing but what is read, and draw
alike: batch k is that of a run of its row's sizes alone.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grain
import numpy as np

from dinojax import resolutions
from dinojax.data import augment, bad_records, layouts, masking, mixture, prefetch


class Row(NamedTuple):
  """What makes the batches of one resolution.

  multi_crop: picklable (rng, image as its source stores it) -> {"global_crops":
    [V, S, S, C], "local_crops": [L, s, s, C]}.
  masks: arguments of `masking.block_masks` besides rng and group_size.
  share: probability of the row.
  """

  multi_crop: Callable[[np.random.Generator, bytes | np.ndarray], dict]
  masks: dict
  share: float = 1.0


def open_batches(
  config, data: mixture.Mixture, *, groups: Sequence[int], start_step: int
) -> prefetch.Batches:
  """Returns `stream` with the crops, masks and sizes of a config."""
  if 0 in groups:  # one process for all
    for line in data.small_sources(config.data.batch_size):
      logging.warning(line)
  return stream(
    data,
    seed=config.seed,
    batch_size=config.data.batch_size,
    group_size=config.group_size,
    rows=list(map(_row, resolutions.configs(config), resolutions.shares(config))),
    groups=groups,
    workers=config.workers,
    start_step=start_step,
  )


def _row(config, share: float) -> Row:
  """The row of a config of one resolution."""
  grid = config.augment.global1.size // config.backbone.patch_size
  multi_crop = augment.make_multi_crop(
    **config.augment.to_dict(),
    gram_size=config.gram.crop_size,
    max_pixels=config.data.max_pixels,
    layout=layouts.of(config.backbone),
  )
  return Row(multi_crop, dict(views=2, grid=grid, **config.masking), share)


def batch_shapes(config) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
  """Shape and dtype of each entry of the global batch, as the step takes it.

  config: of one resolution, see `resolutions.configs`.
  """
  batch, group_size = config.data.batch_size, config.group_size
  side, local_side = config.augment.global1.size, config.augment.local.size
  grid = side // config.backbone.patch_size
  slots = masking.slots(group_size=group_size, views=2, grid=grid, **config.masking)
  channels, dtype = layouts.of(config.backbone)
  num_local = config.augment.num_local
  shapes = {
    "global_crops": ((batch, 2, side, side, channels), dtype),
    "local_crops": ((batch, num_local, local_side, local_side, channels), dtype),
    "mask": ((batch, 2, grid**2), np.bool_),
    "masked_indices": ((batch // group_size, slots), np.int32),
    "masked_weights": ((batch // group_size, slots), np.float32),
  }
  if gram := config.gram.crop_size:
    shapes["gram_crops"] = ((batch, 2, gram, gram, channels), dtype)
  return {name: (shape, np.dtype(kind)) for name, (shape, kind) in shapes.items()}


def stream(
  data: mixture.Mixture,
  *,
  seed: int,
  batch_size: int,
  group_size: int,
  rows: Sequence[Row],
  groups: Sequence[int],
  workers: int,
  start_step: int,
) -> prefetch.Batches:
  """Starts the endless stream of this process's slice of the training batches.

  Every epoch is a new permutation of its source; batches run across epochs.

  Args:
    data: records; corrupt ones are substituted by others of their source, see
      `bad_records.read_or_substitute`.
    seed: of order, crops and masks.
    batch_size: images of the global batch, a multiple of `group_size`.
    group_size: g, images that share masks.
    rows: resolutions; each step draws one, see `resolutions.row_of`.
    groups: positions in the global batch, each in range(batch_size // group_size), of
      the groups that this process holds.
    workers: processes; 0 reads in a thread of this one.
    start_step: step of the first batch.

  Returns:
    Batches, to be closed, of b = len(groups) * g images, in the order of `groups`:
    the crops of their row, such as global_crops [b, V, S, S, C],
    mask bool [b, V, N], masked_indices int32 [len(groups), U] and masked_weights
    float32 [len(groups), U] (see `masking.block_masks`), bad_records [b], a
    `bad_records.REPORT` of each record: the corrupt ones are substituted.

  Raises:
    errors.UserError: while iterating, if a record and all its substitutes are bad.
  """
  by_row = [
    data.order(seed)
    .random_map(_Crops(data, row.multi_crop))
    .batch(group_size)
    .random_map(_Masks(group_size, row.masks))
    for row in rows
  ]
  shares = tuple(row.share for row in rows)
  row_of = functools.partial(resolutions.row_of, seed=seed, shares=shares)
  # Sharding comes last: hosts that drew after it would share random numbers.
  steps = _Steps(by_row, row_of, tuple(groups), batch_size // group_size)
  return prefetch.Batches(steps[start_step:], workers)


@dataclasses.dataclass(frozen=True)
class _Crops:
  """Index of a record -> its crops."""

  data: mixture.Mixture
  multi_crop: Callable

  def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    source, record = self.data.locate(int(index))
    make = functools.partial(self.multi_crop, rng)
    crops, _, reason = bad_records.read_or_substitute(source, record, make=make)
    bad = bad_records.report(*(() if reason is None else (index, reason)))
    return {**crops, "bad_records": bad}


@dataclasses.dataclass(frozen=True)
class _Masks:
  """Crops of a group -> the same with masks; every value has a leading axis to join."""

  group_size: int
  arguments: dict

  def __call__(self, group: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    masks = masking.block_masks(rng, group_size=self.group_size, **self.arguments)
    return group | {
      "mask": masks["mask"],
      "masked_indices": masks["masked_indices"][None],
      "masked_weights": masks["masked_weights"][None],
    }


class _Steps(grain.MapDataset):
  """Element k joins those groups of step k that this process holds, in its row."""

  def __init__(
    self,
    by_row: Sequence[grain.MapDataset],
    row_of: Callable[[int], int],
    groups: tuple[int, ...],
    per_step: int,
  ):
    super().__init__(by_row)
    self._row_of = row_of
    self._groups = groups
    self._per_step = per_step

  def __len__(self) -> int:
    return len(self._parents[0]) // self._per_step

  def __getitem__(self, index: int | slice) -> dict[str, np.ndarray]:
    if isinstance(index, slice):
      return self.slice(index)
    row = self._parents[self._row_of(index)]
    parts = [row[index * self._per_step + group] for group in self._groups]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
