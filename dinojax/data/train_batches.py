"""Training batches: the batch of step k is a pure function of (seed, k).

Grain shuffles, reads, crops, groups and masks in worker processes, ahead of the
training step. Neither the number of workers, nor that of hosts, nor a restart changes
a batch, so a checkpoint needs no state of the input.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence

import grain
import numpy as np

from dinojax.data import augment, bad_records, masking, mixture, prefetch


def open_batches(
  config, data: mixture.Mixture, *, groups: Sequence[int], start_step: int
) -> prefetch.Batches:
  """Returns `stream` with the crops, masks and sizes of a config."""
  if 0 in groups:  # one process for all
    for line in data.small_sources(config.data.batch_size):
      logging.warning(line)
  grid = config.augment.global1.size // config.backbone.patch_size
  return stream(
    data,
    seed=config.seed,
    batch_size=config.data.batch_size,
    group_size=config.group_size,
    multi_crop=augment.make_multi_crop(
      **config.augment.to_dict(),
      gram_size=config.gram.crop_size,
      max_pixels=config.data.max_pixels,
    ),
    masks=dict(views=2, grid=grid, **config.masking),
    groups=groups,
    workers=config.workers,
    start_step=start_step,
  )


def batch_shapes(config) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
  """Shape and dtype of each entry of a config's global batch, as the step takes it."""
  batch, group_size = config.data.batch_size, config.group_size
  side, local_side = config.augment.global1.size, config.augment.local.size
  grid = side // config.backbone.patch_size
  slots = masking.slots(group_size=group_size, views=2, grid=grid, **config.masking)
  shapes = {
    "global_crops": ((batch, 2, side, side, 3), np.uint8),
    "local_crops": (
      (batch, config.augment.num_local, local_side, local_side, 3),
      np.uint8,
    ),
    "mask": ((batch, 2, grid**2), np.bool_),
    "masked_indices": ((batch // group_size, slots), np.int32),
    "masked_weights": ((batch // group_size, slots), np.float32),
  }
  if gram := config.gram.crop_size:
    shapes["gram_crops"] = ((batch, 2, gram, gram, 3), np.uint8)
  return {name: (shape, np.dtype(kind)) for name, (shape, kind) in shapes.items()}


def stream(
  data: mixture.Mixture,
  *,
  seed: int,
  batch_size: int,
  group_size: int,
  multi_crop: Callable[[np.random.Generator, bytes | np.ndarray], dict],
  masks: dict,
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
    multi_crop: picklable (rng, image as its source stores it) -> {"global_crops":
      uint8 [V, S, S, 3], "local_crops": uint8 [L, s, s, 3]}.
    masks: the remaining arguments of `masking.block_masks`.
    groups: positions in the global batch, each in range(batch_size // group_size), of
      the groups that this process holds.
    workers: processes; 0 reads in a thread of this one.
    start_step: step of the first batch.

  Returns:
    Batches, to be closed, of b = len(groups) * g images, in the order of `groups`:
    the crops of `multi_crop`, such as global_crops uint8 [b, V, S, S, 3],
    mask bool [b, V, N], masked_indices int32 [len(groups), U] and masked_weights
    float32 [len(groups), U] (see `masking.block_masks`), bad_records [b], a
    `bad_records.REPORT` of each record: the corrupt ones are substituted.

  Raises:
    errors.UserError: while iterating, if a record and all its substitutes are bad.
  """
  step_groups = (
    data.order(seed)
    .random_map(_Crops(data, multi_crop))
    .batch(group_size)
    .random_map(_Masks(group_size, masks))
  )
  # Sharding comes last: hosts that drew after it would share random numbers.
  share = _Share(step_groups, tuple(groups), batch_size // group_size)
  return prefetch.Batches(share[start_step:], workers)


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


class _Share(grain.MapDataset):
  """Element k joins those of step k's groups that this process holds."""

  def __init__(self, parent: grain.MapDataset, groups: tuple[int, ...], per_step: int):
    super().__init__(parent)
    self._groups = groups
    self._per_step = per_step

  def __len__(self) -> int:
    return len(self._parent) // self._per_step

  def __getitem__(self, index: int | slice) -> dict[str, np.ndarray]:
    if isinstance(index, slice):
      return self.slice(index)
    parts = [self._parent[index * self._per_step + group] for group in self._groups]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
