"""Segmentation without training: each patch asks its nearest neighbours.

Source: Hummingbird (arXiv:2306.01667). A memory holds patches of training images, each
with the share of its pixels that every class has. A patch of a test image gets the mean
of its k nearest patches' shares, weighed by softmax(cosine / temperature).
DIFFERS: training images are seen once, as they are; published figures take augmented
copies too, and larger memories.

Dimension key of patches.py, and k neighbours.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dinojax import errors, sharding
from dinojax.data import sources
from dinojax.evals import features, patches, search

# Soft labels of the neighbours of a batch, on all devices together.
NEIGHBOUR_BYTES = 2**29


def most_images(reader_patches: int, *, k: int, num_classes: int) -> int:
  """How many test images a batch may have: N patches each, k neighbours of a patch."""
  return max(1, NEIGHBOUR_BYTES // (4 * reader_patches * k * num_classes))


def knn_segmentation(
  reader: patches.Reader,
  memory: patches.Memory,
  test: sources.DenseSource,
  *,
  class_names: tuple[str, ...],
  k: int,
  temperature: float,
) -> dict:
  """Segments `test` by the patches of training images.

  Args:
    reader: the network.
    memory: patches of training images.
    test: images to segment.
    class_names: by value of the label maps.
    k: neighbours.
    temperature: of the softmax.

  Returns:
    As `scores`, under "knn_segmentation_", and the number of patches remembered.

  Raises:
    UserError: there are fewer patches than k, no labelled pixel, or features are not
      finite.
  """
  size = patches.count(memory)
  if size < k:
    raise errors.UserError(
      f"--segmentation_k={k} asks for more neighbours than --train has labelled"
      f" patches, {size:,}; lower it"
    )
  (pixels,) = confusion(
    reader,
    test,
    Votes(k, temperature, reader.mesh),
    memory,
    num_classes=len(class_names),
    description="patches of --test",
  )
  found = scores(pixels, class_names) | {"patches": size}
  return {f"knn_segmentation_{name}": value for name, value in found.items()}


def scores(pixels: np.ndarray, class_names: tuple[str, ...]) -> dict:
  """Numbers of a confusion [C true, C predicted].

  Returns:
    miou, the mean IoU over all classes that are there or predicted, accuracy, the share
    of right pixels, and iou, {class: IoU}, None where a class is neither there nor
    predicted.
  """
  iou = intersection_over_union(pixels)
  named = zip(class_names, iou.tolist(), strict=True)
  return {
    "miou": float(np.nanmean(iou)),
    "accuracy": float(np.trace(pixels) / pixels.sum()),
    "iou": {name: None if np.isnan(x) else x for name, x in named},
  }


def intersection_over_union(pixels: np.ndarray) -> np.ndarray:
  """IoU of each class; NaN where it is neither there nor predicted.

  Args:
    pixels: [..., C true, C predicted].

  Returns:
    float64 [..., C].
  """
  both = np.diagonal(pixels, axis1=-2, axis2=-1)
  either = pixels.sum(-1) + pixels.sum(-2) - both
  return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def confusion(
  reader: patches.Reader,
  source: sources.DenseSource,
  predict: Callable[[Any, jax.Array], jax.Array],
  state: Any,
  *,
  num_classes: int,
  description: str,
) -> np.ndarray:
  """Pixels of a source by their true and their predicted class.

  What is predicted for patches is resized bilinearly to S x S; the class of the largest
  value is compared with the label map there. Pixels to ignore count nowhere.

  Args:
    reader: the network.
    source: images to segment.
    predict: (state, patches [B, N, D]) -> [B, N, H, C], values of H methods; hashable.
    state: arrays that `predict` needs.
    num_classes: C.
    description: shown before the progress bar.

  Returns:
    int64 [H, C true, C predicted].

  Raises:
    UserError: features are not finite, or no pixel has a label.
  """
  total, fixed = 0, dict(predict=predict, mesh=reader.mesh)
  for step, (tokens, batch) in enumerate(
    reader.batches(source, num_classes=num_classes, description=description)
  ):
    counted = count(state, tokens, batch["label_map"], **fixed)
    found, bad = jax.device_get(counted)
    if bad.any():
      patches.refuse_not_finite(source, step * reader.batch_size + int(bad.argmax()))
    total = total + found.astype(np.int64)
  if not total.any():
    raise errors.UserError(f"{source.where}: no readable image has a labelled pixel")
  return total


@functools.partial(jax.jit, static_argnames=("predict", "mesh"))
def count(
  state: Any, tokens: jax.Array, label_map: jax.Array, *, predict: Callable, mesh: Mesh
) -> tuple[jax.Array, jax.Array]:
  """Pixels of a batch by class, and the images whose features are not finite.

  Args:
    state: of `predict`.
    tokens: [B, N, D] patches of square images.
    label_map: uint8 [B, S, S].
    predict: as of `confusion`.
    mesh: of all arrays.

  Returns:
    int32 [H, C true, C predicted], and bool [B].
  """

  def of_images(values, label_map):
    # One image of one method at a time, since all values at S x S are many.
    of_image = lambda image: _count_image(*image)  # noqa: E731
    methods = [values[:, :, i] for i in range(values.shape[2])]
    counts = [jax.lax.map(of_image, (x, label_map)).sum(0) for x in methods]
    return jnp.stack(counts)[None]

  spec = sharding.BATCH
  mapped = jax.shard_map(of_images, mesh=mesh, in_specs=spec, out_specs=spec)
  found = mapped(predict(state, tokens), label_map).sum(0)
  bad = ~jnp.isfinite(tokens).all((1, 2))
  return jax.lax.with_sharding_constraint((found, bad), sharding.replicated(mesh))


class Votes(NamedTuple):
  """Votes of the k nearest patches, one method; temperature: of their softmax."""

  k: int
  temperature: float
  mesh: Mesh

  def __call__(self, memory: patches.Memory, tokens: jax.Array) -> jax.Array:
    """The share of each class in a patch, as its neighbours have it: [B, N, 1, C]."""
    size, grid, width = tokens.shape
    similarity, rows, _ = search.nearest(
      memory.bank, tokens.reshape(-1, width), k=self.k, mesh=self.mesh
    )
    weights = jax.nn.softmax(similarity / self.temperature, axis=1)  # [B*N, k]
    known = memory.bank.replace(features=memory.shares)
    shares, _ = features.fetch(known, rows.ravel(), self.mesh)
    shares = shares.reshape(*weights.shape, -1)  # [B*N, k, C]
    # In the order of the neighbours, on any mesh: equal classes remain equal.
    return (weights[..., None] * shares).sum(1).reshape(size, grid, 1, -1)


def _count_image(values: jax.Array, label_map: jax.Array) -> jax.Array:
  """Of one image: values [N, C] and a map [S, S] -> pixels, int32 [C, C]."""
  classes, side = values.shape[-1], round(len(values) ** 0.5)
  values = jax.image.resize(
    values.reshape(side, side, classes),
    (*label_map.shape, classes),
    "linear",
    precision="highest",
  )
  return count_pixels(values, label_map)


def count_pixels(values: jax.Array, label_map: jax.Array) -> jax.Array:
  """Pixels by true class and that of the largest value, int32 [C, C].

  Args:
    values: [..., C] of the pixels.
    label_map: uint8 [...]; a label to ignore is beyond the last class.
  """
  classes = values.shape[-1]
  cell = label_map.astype(jnp.int32) * classes + values.argmax(-1)
  cells = jnp.zeros(classes * classes, jnp.int32)
  cells = cells.at[cell.ravel()].add(1, mode="drop")
  return cells.reshape(classes, classes)
