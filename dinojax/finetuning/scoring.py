"""Top-1 and top-5 accuracy of a classifier on a labelled source, on the whole mesh."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh

from dinojax import errors, sharding
from dinojax.data import bad_records, eval_batches, images, sources

TOPS = (1, 5)


def accuracy(
  source: sources.Source,
  predict: Callable[[jax.Array], jax.Array],
  *,
  mesh: Mesh,
  batch_size: int,
  resize: int,
  crop: int,
  workers: int,
  description: str,
  max_pixels: int = images.MAX_PIXELS,
  progress: Callable[[], None] = lambda: None,
) -> dict[str, float]:
  """{"top1", "top5"}: shares of the labelled, readable images, within 0..1.

  Args:
    source: images and labels; corrupt ones are skipped.
    predict: jitted, uint8 [B, crop, crop, 3] -> logits [B, C].
    mesh: that batches are split over.
    batch_size: B, a multiple of the number of devices.
    resize: pixels of the shorter side, before the centre crop.
    crop: pixels of a side of the centre crop.
    workers: processes that read.
    description: shown before the progress bar.
    max_pixels: larger images are corrupt, see `images.decode`.
    progress: called after every batch.

  Raises:
    UserError: no labelled image is readable.
  """
  rows = sharding.local_positions(mesh, batch_size)
  reading = dict(resize=resize, crop=crop, workers=workers, max_pixels=max_pixels)
  batches = eval_batches.open_batches(
    source, batch_size=batch_size, rows=rows, **reading
  )
  log, pending, total = bad_records.Log("corrupt image skipped"), [], 0
  try:
    for batch in tqdm.tqdm(
      batches,
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
      pending.append(count_right(predict(batch["image"]), batch["label"]))
      if len(pending) > 1:  # one batch ahead of the device, no more
        total += np.array(jax.device_get(pending.pop(0)))
      progress()
  finally:
    batches.close()
  total += sum(np.array(jax.device_get(x)) for x in pending)
  *right, known = total.tolist()
  if not known:
    raise errors.UserError(
      f"{source.where}: none of its {len(source):,} images is readable and has a label"
    )
  return {f"top{k}": count / known for k, count in zip(TOPS, right, strict=True)}


@jax.jit
def count_right(scores: jax.Array, labels: jax.Array) -> list[Any]:
  """How many of [B, C] have their label among the first 1 and 5, and have a label.

  Among equal scores the lower class comes first. A label that the classifier does not
  have is never right.
  """
  wanted = jnp.maximum(labels, 0)[:, None]
  own = jnp.take_along_axis(scores, wanted, axis=-1)  # NaN beyond the last class
  earlier = jnp.arange(scores.shape[-1]) < wanted
  rank = ((scores > own) | ((scores == own) & earlier)).sum(-1)
  there = (labels >= 0) & jnp.isfinite(own[:, 0])
  return [*((there & (rank < k)).sum() for k in TOPS), (labels >= 0).sum()]
