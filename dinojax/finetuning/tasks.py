"""Tasks of a fine-tuning: what is learnt of an image, its loss, and how it is judged.

Dimension key: B images, N patches, C classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Task(NamedTuple):
  """A task.

  metrics: what is measured on --val and --test; by the first the best checkpoint is
  chosen. titles: of these in a table. train_metric: name of what `judge` finds right.
  judge: (scores, labels of a batch) -> (losses [B], shares that are right [B], weights
  [B], 0 without a label).
  """

  metrics: tuple[str, ...]
  titles: tuple[str, ...]
  train_metric: str
  judge: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


def cross_entropy(scores: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
  """`judge` of one class for each image: scores [B, C], int32 [B], -1 for none."""
  losses = optax.softmax_cross_entropy_with_integer_labels(
    scores, jnp.maximum(labels, 0)
  )
  right = scores.argmax(-1) == labels
  return losses, right.astype(jnp.float32), (labels >= 0).astype(jnp.float32)


def sigmoid_cross_entropy(scores: jax.Array, sets: jax.Array) -> tuple[jax.Array, ...]:
  """`judge` of any number of classes: scores [B, C], uint8 [B, C], 1 where it is.

  The loss of an image is the mean over classes; right is one whose classes, at a
  probability of 0.5, are exactly its own.
  """
  losses = optax.sigmoid_binary_cross_entropy(scores, sets.astype(jnp.float32)).mean(-1)
  right = ((scores > 0) == (sets > 0)).all(-1)
  return losses, right.astype(jnp.float32), jnp.ones(len(scores))


def patch_cross_entropy(scores: jax.Array, shares: jax.Array) -> tuple[jax.Array, ...]:
  """`judge` of a class for each pixel: scores [B, N, C], float32 shares [B, N, C].

  The loss of an image is the mean over its labelled patches, whose shares are soft
  labels; right is a patch whose largest share has the largest score. An image weighs as
  much as it has labelled patches.
  """
  known = (shares.sum(-1) > 0).astype(jnp.float32)  # [B, N]
  count = known.sum(-1)
  losses = jax.nn.logsumexp(scores, -1) - (shares * scores).sum(-1)
  right = (scores.argmax(-1) == shares.argmax(-1)).astype(jnp.float32)
  losses, right = ((x * known).sum(-1) / jnp.maximum(count, 1) for x in (losses, right))
  return losses, right, count


TASKS = {
  "classes": Task(("top1", "top5"), ("top-1", "top-5"), "train_top1", cross_entropy),
  "labels": Task(("map", "f1"), ("mAP", "F1"), "train_exact", sigmoid_cross_entropy),
  "segmentation": Task(
    ("miou", "accuracy"), ("mean IoU", "pixels"), "train_patches", patch_cross_entropy
  ),
}


def mean(
  task: Task, scores: jax.Array, labels: list[tuple[jax.Array, jax.Array]]
) -> tuple[jax.Array, jax.Array]:
  """Mean loss, and share that is right, over the images of a batch that have a label.

  Args:
    task: of the run.
    scores: of the head.
    labels: (labels of a batch, share [B] of each image that they describe).
  """
  judged = [(*task.judge(scores, x), share) for x, share in labels]
  count = sum((known * share).sum() for _, _, known, share in judged)
  count = jnp.where(count > 0, count, 1)
  losses, right = (
    sum((one[i] * one[2] * one[3]).sum() for one in judged) / count for i in (0, 1)
  )
  return losses, right
