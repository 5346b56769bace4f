"""Top-1 and top-5 accuracy of a classifier on a labelled source, on the whole mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax import errors
from dinojax.data import sources
from dinojax.evals import features

TOPS = (1, 5)


def accuracy(
  source: sources.Source, predict: Callable[[jax.Array], jax.Array], **how: Any
) -> dict[str, float]:
  """{"top1", "top5"}: shares of the labelled, readable images, within 0..1.

  Args:
    source: images and labels; corrupt ones are skipped.
    predict: jitted, uint8 [B, crop, crop, 3] -> logits [B, C].
    **how: as of `features.batches`.

  Raises:
    UserError: no labelled image is readable.
  """
  pending, total = [], 0
  for images, labels in features.batches(source, **how):
    pending.append(count_right(predict(images), labels))
    if len(pending) > 1:  # one batch ahead of the device, no more
      total += np.array(jax.device_get(pending.pop(0)))
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
