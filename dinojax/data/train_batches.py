"""From source to host batches: the batch of step k is a pure function of (seed, k).

Grain shuffles, reads, crops, groups and masks, in worker processes that are ahead of
the training step. Neither their number, nor that of the hosts, nor a restart changes a
batch, so a checkpoint needs no state of the input.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence

import grain
import numpy as np
from PIL import Image

from dinojax import errors
from dinojax.data import augment, masking, mixture, prefetch, sources

ATTEMPTS = 16  # records tried in place of an unreadable one before giving up
MIN_RECORDS = 1_000  # a share of fewer records says nothing
NAMED = 20  # bad records, of a process: a lost shard would fill the log


def open_batches(
  config, data: mixture.Mixture, *, groups: Sequence[int], start_step: int
) -> prefetch.Batches:
  """`train_batches` with crops, masks and numbers of a config."""
  grid = config.augment.global1.size // config.backbone.patch_size
  return train_batches(
    data,
    seed=config.seed,
    batch_size=config.data.batch_size,
    group_size=config.group_size,
    multi_crop=augment.make_multi_crop(**config.augment.to_dict()),
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
  return {name: (shape, np.dtype(kind)) for name, (shape, kind) in shapes.items()}


def train_batches(
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
  """Starts the endless stream of this process's share of the training batches.

  Every epoch is a new permutation of its source; batches run across epochs.

  Args:
    data: records; unreadable ones are replaced by others of their source, see
      `sources.read`.
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
    global_crops uint8 [b, V, S, S, 3], local_crops uint8 [b, L, s, s, 3],
    mask bool [b, V, N], masked_indices int32 [len(groups), U] and masked_weights
    float32 [len(groups), U] (see `masking.block_masks`), bad_records int64 [b], the
    index of an unreadable record that was replaced, or -1.

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


def eval_batches(
  source: sources.Source,
  *,
  batch_size: int,
  rows: Sequence[int],
  resize: int,
  crop: int,
  workers: int,
  spans: Sequence[tuple[int, int]] | None = None,
) -> prefetch.Batches:
  """Starts one pass, in order, over this process's share of a source.

  Images are resized to `resize` along the shorter side, by antialiased bicubic, and
  cropped at the centre. Unreadable ones are left out.

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

  Returns:
    Batches, to be closed, of b = len(rows), in the order of `rows`:
    image uint8 [b, crop, crop, 3], label int32 [b], index int32 [b], the record,
    valid bool [b], False beyond the end of the span and for unreadable records,
    bad_records int64 [b], the index of an unreadable record, or -1.

  Raises:
    errors.UserError: crop > resize.
  """
  if crop > resize:
    raise errors.UserError(f"crop={crop} must be at most resize={resize}; lower it")
  if spans is None:
    spans = [(0, len(source))]
  bounds = np.array(
    [(first, stop) for start, stop in spans for first in range(start, stop, batch_size)]
  )
  read_rows = _EvalRows(source, bounds, tuple(rows), resize, crop)
  batches = grain.MapDataset.range(len(bounds)).map(read_rows)
  return prefetch.Batches(batches, min(workers, len(bounds)))


class BadRecords:
  """Names the unreadable records of this process, and ends the run if they are many."""

  def __init__(self, source: mixture.Mixture, *, max_bad_share: float):
    """max_bad_share: of the records read; what lies above ends the run."""
    self._source = source
    self._max_bad_share = max_bad_share
    self._known = set()
    self.seen = 0
    self.bad = 0

  def update(self, bad_records: np.ndarray) -> None:
    """Counts one batch and logs each bad record the first time.

    The first NAMED are warnings; the others are of level INFO, and a warning counts
    them whenever they have doubled. A single bad record never ends a run, and below
    MIN_RECORDS read records the share is taken of so many.

    Args:
      bad_records: [b] index of an unreadable record, or -1.

    Raises:
      errors.UserError: too large a share of the records is unreadable.
    """
    indices = bad_records[bad_records >= 0].tolist()
    self.seen += len(bad_records)
    self.bad += len(indices)
    for index in sorted(set(indices) - self._known):
      self._known.add(index)
      count = len(self._known)
      level = logging.WARNING if count <= NAMED else logging.INFO
      logging.log(level, "unreadable record %s replaced", self._source.name(index))
      if count % NAMED == 0 and (count // NAMED).bit_count() == 1:
        told = "%d unreadable records so far; --verbosity=0 names all, not the first %d"
        logging.warning(told, count, NAMED)
    limit = self._max_bad_share * max(self.seen, MIN_RECORDS)
    if self.bad > max(limit, 1):
      raise errors.UserError(
        f"{self.bad} of {self.seen} records are unreadable, more than "
        f"config.data.max_bad_share={self._max_bad_share}; repair the data (the log "
        f"names the first {NAMED}, and all with --verbosity=0) or raise the share"
      )


@dataclasses.dataclass(frozen=True)
class _Crops:
  """Index of a record -> its crops."""

  data: mixture.Mixture
  multi_crop: Callable

  def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    source, record = self.data.locate(int(index))
    make = functools.partial(self.multi_crop, rng)
    crops, _, bad = sources.read(source, record, attempts=ATTEMPTS, make=make)
    return {**crops, "bad_records": np.int64(-1 if bad < 0 else index)}


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

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    size = len(self.rows)
    batch = {
      "image": np.zeros((size, self.crop, self.crop, 3), np.uint8),
      "label": np.full(size, -1, np.int32),
      "index": np.full(size, -1, np.int32),
      "valid": np.zeros(size, bool),
      "bad_records": np.full(size, -1, np.int64),
    }
    first, stop = self.bounds[int(step)].tolist()
    for i, row in enumerate(self.rows):
      index = first + row
      if index >= stop:
        continue
      batch["index"][i] = index
      try:
        image, batch["label"][i] = sources.load(self.source, index)
      except sources.UNREADABLE:
        batch["bad_records"][i] = index
      else:
        batch["image"][i] = _centre_crop(image, self.resize, self.crop)
        batch["valid"][i] = True
    return batch


def _centre_crop(image: np.ndarray, resize: int, crop: int) -> np.ndarray:
  """Resizes [H, W, 3] to `resize` along the shorter side and crops the centre.

  Only the crop is computed: resized whole, one thin panorama would fill the memory.
  """
  height, width, _ = image.shape
  side = crop * min(height, width) / resize  # in pixels of the image
  left, top = (width - side) / 2, (height - side) / 2
  box = (left, top, left + side, top + side)
  resized = Image.fromarray(image).resize((crop, crop), Image.Resampling.BICUBIC, box)
  return np.asarray(resized)
