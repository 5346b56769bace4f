"""Accuracy of a classifier on a labelled source, on the whole mesh.

Top-1 and top-5 of one class for each image; mean average precision and F1 of any number
of classes; mean IoU of a class for each pixel.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dinojax import errors, sharding
from dinojax.data import images, label_sets, layouts, sources
from dinojax.evals import features, patches, segmentation

TOPS = (1, 5)


def evaluate(
  task: str,
  source: sources.Source,
  predict: Callable[[jax.Array], jax.Array],
  *,
  class_names: tuple[str, ...],
  patch_size: int,
  **how: Any,
) -> dict[str, float]:
  """The `tasks.Task.metrics` of a task.

  Args:
    task: one of `tasks.TASKS`.
    source: images and labels; corrupt ones are skipped.
    predict: jitted, uint8 [B, crop, crop, 3] -> scores.
    class_names: by label.
    patch_size: of the network, pixels.
    **how: as of `features.batches`.

  Raises:
    UserError: no labelled image is readable.
  """
  if task == "segmentation":
    named = dict(class_names=class_names, patch_size=patch_size)
    return segment(source, predict, **named, **how)
  return {"classes": accuracy, "labels": precision}[task](source, predict, **how)


def accuracy(
  source: sources.Source, predict: Callable[[jax.Array], jax.Array], **how: Any
) -> dict[str, float]:
  """{"top1", "top5"}: shares of the labelled, readable images, within 0..1.

  Args:
    source: images and labels; corrupt ones are skipped.
    predict: jitted, images [B, crop, crop, C] -> logits [B, C].
    **how: as of `features.batches`.

  Raises:
    UserError: no labelled image is readable.
  """
  pending, total = [], 0
  for batch, labels in features.batches(source, **how):
    pending.append(count_right(predict(batch), labels))
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


def precision(
  source: label_sets.LabelSets,
  predict: Callable[[jax.Array], jax.Array],
  **how: Any,
) -> dict[str, float]:
  """{"map", "f1"} of the readable images, within 0..1.

  map: average precision, mean over the classes that an image has. f1: of all images and
  classes together, at a probability of 0.5.

  Args:
    source: images and sets of labels.
    predict: as of `accuracy`.
    **how: as of `features.batches`.

  Raises:
    UserError: no image is readable, or no readable image has a class.
  """
  gather = jax.jit(lambda *x: x, out_shardings=sharding.replicated(how["mesh"]))
  scores, truth = [], []
  for batch, labels in features.batches(source, **how):
    found, numbers = map(np.asarray, gather(predict(batch), labels))
    scores.append(found[numbers >= 0])
    truth.append(source.sets[numbers[numbers >= 0]] > 0)
  scores, truth = np.concatenate(scores), np.concatenate(truth)
  if not truth.any():
    raise errors.UserError(
      f"{source.where}: none of its {len(source):,} images is readable and has a label"
    )
  by_class = [
    average_precision(scores[:, i], truth[:, i]) for i in np.flatnonzero(truth.any(0))
  ]
  taken = scores > 0
  both, either = (truth & taken).sum(), truth.sum() + taken.sum()
  return {"map": float(np.mean(by_class)), "f1": float(2 * both / either)}


def segment(
  source: sources.DenseSource,
  predict: Callable[[jax.Array], jax.Array],
  *,
  class_names: tuple[str, ...],
  patch_size: int,
  mesh: Mesh,
  batch_size: int,
  resize: int,
  crop: int,
  workers: int,
  description: str,
  max_pixels: int = images.MAX_PIXELS,
  layout: layouts.Layout = layouts.RGB,
  progress: Callable[[], None] = lambda: None,
) -> dict[str, float]:
  """{"miou", "accuracy"} of the labelled pixels, see `segmentation.scores`.

  Images are stretched to squares of `crop` pixels as a whole, whatever `resize` says.
  Arguments as of `evaluate`.
  """
  reader = patches.Reader(
    lambda _, batch: predict(batch),
    None,
    patch_size=patch_size,
    side=crop,
    mesh=mesh,
    batch_size=batch_size,
    workers=workers,
    max_pixels=max_pixels,
    layout=layout,
    progress=progress,
  )
  # What the reader yields are scores already; segmentation.py judges several methods.
  (pixels,) = segmentation.confusion(
    *(reader, source, one_method, None),
    num_classes=len(class_names),
    description=description,
  )
  found = segmentation.scores(pixels, class_names)
  return {name: found[name] for name in ("miou", "accuracy")}


def one_method(_: None, scores: jax.Array) -> jax.Array:
  """[B, N, C] -> [B, N, 1, C]."""
  return scores[:, :, None]


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
  """Mean precision at the thresholds, weighed by the recall that each of them adds.

  Images of equal scores share a threshold. As scikit-learn's average_precision_score.

  Args:
    scores: [N].
    truth: bool [N], at least one of them true.
  """
  order = np.argsort(-scores, kind="stable")
  found = truth[order].cumsum()
  ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
  added = np.diff(found[ends], prepend=0)
  return float((added * found[ends] / (ends + 1)).sum() / found[-1])
