"""Frozen features of a labelled source, computed and kept on the whole mesh.

Dimension key: S steps (batches of the source), B images of a batch, D width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh, PartitionSpec

from dinojax import errors, sharding
from dinojax.data import bad_records, eval_batches, images, layouts, sources


@flax.struct.dataclass
class Bank:
  """Features of all images; row (s, b) is image s * B + b of the source.

  features: [S, B, D] float32, sharded over all devices along B, so that no device ever
  holds the whole. labels: [S, B] int32, -1 for padding and unreadable images.
  """

  features: jax.Array
  labels: jax.Array


def check(bank: Bank, source: sources.Source) -> None:
  """Raises UserError if no labelled image was readable, or a feature is not finite."""
  readable, bad, first = jax.device_get(count_bad(bank))
  if not readable:
    raise errors.UserError(
      f"{source.where}: none of its {len(source):,} images is readable and has a label;"
      " the warnings before say why, or --verbosity=0 does"
    )
  if bad:
    raise errors.UserError(
      f"{source.where}: the features of {bad:,} of {readable:,} images are not finite,"
      f" the first one's {source.name(int(first))}; check the weights, or try"
      " --dtype=float32"
    )


@jax.jit
def count_bad(bank: Bank) -> tuple:
  """Labelled rows, how many of them are not finite, and the first of these."""
  bad = (bank.labels >= 0) & ~jnp.isfinite(bank.features).all(-1)
  return (bank.labels >= 0).sum(), bad.sum(), jnp.argmax(bad.ravel())


def count_labelled(bank: Bank) -> int:
  """How many rows have a label."""
  return int(_count_labelled(bank.labels))


@jax.jit
def _count_labelled(labels):
  return (labels >= 0).sum()


def select(bank: Bank, present: Sequence, wanted: Sequence) -> Bank:
  """The bank with `wanted` of the equally wide columns that it is made of.

  Args:
    bank: of features [S, B, len(present) * D].
    present: what the columns are, in order; any values that can be compared.
    wanted: of `present`, in the order of the result.
  """
  if tuple(wanted) == tuple(present):
    return bank
  places = [list(present).index(column) for column in wanted]

  @jax.jit
  def take(x):
    parts = jnp.split(x, len(present), axis=-1)
    return jnp.concatenate([parts[i] for i in places], axis=-1)

  return bank.replace(features=take(bank.features))


def fetch(bank: Bank, rows: jax.Array, mesh: Mesh) -> tuple:
  """Features [n, D] and labels [n] of rows [n] of the bank, split over the devices.

  Each device looks up its own rows and sends every other device its slice, so that
  memory holds a batch, whatever the size of the bank.
  """
  spec = PartitionSpec(None, sharding.AXES)
  step, row = jnp.divmod(rows, bank.labels.shape[1])

  def look_up(bank, step, row):
    local = bank.labels.shape[1]
    row = row - jax.lax.axis_index(sharding.AXES) * local
    here = (row >= 0) & (row < local)
    place = step, jnp.clip(row, 0, local - 1)
    found = (
      jnp.where(here[:, None], bank.features[place], 0),
      jnp.where(here, bank.labels[place], 0),
    )
    return [sharding.reduce_scatter(x) for x in found]

  specs = dict(
    in_specs=(spec, PartitionSpec(), PartitionSpec()), out_specs=sharding.BATCH
  )
  return jax.shard_map(look_up, mesh=mesh, **specs)(bank, step, row)


def extract(
  source: sources.Source,
  apply_fn: Callable[[Any, jax.Array], jax.Array],
  params: Any,
  **how: Any,
) -> Bank:
  """Runs a network once over a source.

  Args:
    source: images and labels.
    apply_fn: jitted (params, images [B, crop, crop, C]) -> [B, D].
    params: of `apply_fn`.
    **how: as of `batches`.
  """
  features, labels = [], []
  for images_of, labels_of in batches(source, **how):
    features.append(apply_fn(params, images_of).astype(jnp.float32))
    labels.append(labels_of)
    jax.block_until_ready(features[-2:-1])  # one batch ahead of the device, no more
  return Bank(features=jnp.stack(features), labels=jnp.stack(labels))


def batches(
  source: sources.Source,
  *,
  mesh: Mesh,
  batch_size: int,
  resize: int,
  crop: int,
  workers: int,
  description: str,
  max_pixels: int = images.MAX_PIXELS,
  layout: layouts.Layout = layouts.RGB,
  progress: Callable[[], None] = lambda: None,
) -> Iterator[tuple[jax.Array, jax.Array]]:
  """Yields images [B, crop, crop, C] and int32 labels [B], on the mesh, in order.

  The label is -1 of padding and of unreadable images, which are named.

  Args:
    source: images and labels.
    mesh: that batches are split over.
    batch_size: B, a multiple of the number of devices.
    resize: pixels of the shorter side, before the centre crop.
    crop: pixels of a side of the centre crop.
    workers: Grain processes.
    description: shown before the progress bar.
    max_pixels: larger images are corrupt, see `images.decode`.
    layout: of the images; others are corrupt.
    progress: called after every batch.
  """
  rows = sharding.local_positions(mesh, batch_size)
  opened = eval_batches.open_batches(
    source,
    batch_size=batch_size,
    rows=rows,
    resize=resize,
    crop=crop,
    workers=workers,
    max_pixels=max_pixels,
    layout=layout,
  )
  log = bad_records.Log("corrupt image skipped")
  try:
    for batch in tqdm.tqdm(
      opened,
      desc=description,
      total=math.ceil(len(source) / batch_size),
      leave=False,
      disable=None if jax.process_index() == 0 else True,  # None: unless no terminal
    ):
      for _, message in bad_records.messages(source, batch["bad_records"]):
        log.add(message)
      known = np.where(batch["valid"], batch["label"], -1)
      local = {"image": batch["image"], "label": known}
      batch = sharding.put_batch(mesh, local, rows, batch_size)
      yield batch["image"], batch["label"]
      progress()
  finally:
    opened.close()
