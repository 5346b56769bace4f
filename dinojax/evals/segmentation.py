"""Segmentation without training: each patch asks its nearest neighbours.

Source: Hummingbird (arXiv:2306.01667). A memory holds patches of training images, each
with the share of its pixels that every class has. A patch of a test image gets the mean
of its k nearest patches' shares, weighed by softmax(cosine / temperature).
DIFFERS: training images are seen once, as they are; published figures take augmented
copies too, and larger memories.

Dimension key of patches.py, and k neighbours.
"""

import functools

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
  train: sources.DenseSource,
  test: sources.DenseSource,
  *,
  class_names: tuple[str, ...],
  k: int,
  temperature: float,
  memory: int,
  seed: int,
) -> dict:
  """Segments `test` by the patches of `train`.

  Votes of patches are resized bilinearly to S x S, and compared with the label maps
  there. Pixels to ignore count nowhere.

  Args:
    reader: the network.
    train: images whose patches are remembered.
    test: images to segment.
    class_names: by value of the label maps.
    k: neighbours.
    temperature: of the softmax.
    memory: patches remembered, at most.
    seed: of their choice.

  Returns:
    knn_segmentation_miou, the mean IoU over all classes that are there or predicted,
    knn_segmentation_accuracy, the share of right pixels, knn_segmentation_patches, how
    many are remembered, and knn_segmentation_iou, {class: IoU}, None where a class is
    neither there nor predicted.

  Raises:
    UserError: there are fewer patches than k, no labelled pixel, or features are not
      finite.
  """
  settings = dict(num_classes=len(class_names))
  known = patches.remember(
    reader, train, most=memory, seed=seed, description="patches of --train", **settings
  )
  size = int((known.bank.labels >= 0).sum())
  if size < k:
    raise errors.UserError(
      f"--segmentation_k={k} asks for more neighbours than --train has labelled"
      f" patches, {size:,}; lower it"
    )
  confusion = np.zeros((len(class_names),) * 2, np.int64)
  for step, (tokens, batch) in enumerate(
    reader.batches(test, description="patches of --test", **settings)
  ):
    found, bad = jax.device_get(
      count(
        known,
        tokens,
        batch["label_map"],
        k=k,
        temperature=temperature,
        mesh=reader.mesh,
      )
    )
    if bad.any():
      patches.refuse_not_finite(test, step * reader.batch_size + int(bad.argmax()))
    confusion += found
  if not confusion.any():
    raise errors.UserError(f"{test.where}: no readable image has a labelled pixel")
  iou = intersection_over_union(confusion)
  return {
    "knn_segmentation_miou": float(np.nanmean(iou)),
    "knn_segmentation_accuracy": float(np.trace(confusion) / confusion.sum()),
    "knn_segmentation_patches": size,
    "knn_segmentation_iou": {
      name: None if np.isnan(x) else float(x)
      for name, x in zip(class_names, iou, strict=True)
    },
  }


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
  """IoU of each class, float64 [C]; NaN where it is neither there nor predicted.

  Args:
    confusion: pixels, [C true, C predicted].
  """
  both = np.diag(confusion)
  either = confusion.sum(0) + confusion.sum(1) - both
  return np.where(either > 0, both / np.maximum(either, 1), np.nan)


@functools.partial(jax.jit, static_argnames=("k", "mesh"))
def count(
  memory: patches.Memory,
  tokens: jax.Array,
  label_map: jax.Array,
  *,
  k: int,
  temperature: float,
  mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
  """Pixels of a batch by class, and the images whose features are not finite.

  Args:
    memory: of the training images.
    tokens: [B, N, D] patches of square images.
    label_map: uint8 [B, S, S].
    k: neighbours.
    temperature: of the softmax.
    mesh: of all arrays.

  Returns:
    int32 [C true, C predicted], and bool [B].
  """
  shares = votes(memory, tokens, k=k, temperature=temperature, mesh=mesh)
  by_device = jax.shard_map(
    lambda *images: jax.lax.map(lambda image: _confusion(*image), images).sum(0)[None],
    mesh=mesh,
    in_specs=sharding.BATCH,
    out_specs=sharding.BATCH,
  )(shares, label_map)
  everywhere = sharding.replicated(mesh)
  bad = ~jnp.isfinite(tokens).all((1, 2))
  return jax.lax.with_sharding_constraint((by_device.sum(0), bad), everywhere)


def votes(
  memory: patches.Memory,
  tokens: jax.Array,
  *,
  k: int,
  temperature: float,
  mesh: Mesh,
) -> jax.Array:
  """The share of each class in each patch, as its neighbours have it: [B, N, C]."""
  size, grid, width = tokens.shape
  similarity, rows, _ = search.nearest(
    memory.bank, tokens.reshape(-1, width), k=k, mesh=mesh
  )
  weights = jax.nn.softmax(similarity / temperature, axis=1)  # [B*N, k]
  known = memory.bank.replace(features=memory.shares)
  shares, _ = features.fetch(known, rows.ravel(), mesh)
  shares = shares.reshape(*weights.shape, -1)  # [B*N, k, C]
  # In the order of the neighbours, on any mesh: equal classes remain equal.
  return (weights[..., None] * shares).sum(1).reshape(size, grid, -1)


def _confusion(shares: jax.Array, label_map: jax.Array) -> jax.Array:
  """Of one image: votes [N, C] and a map [S, S] -> pixels, int32 [C, C]."""
  classes, side = shares.shape[-1], round(len(shares) ** 0.5)
  shares = jax.image.resize(
    shares.reshape(side, side, classes),
    (*label_map.shape, classes),
    "linear",
    precision="highest",
  )
  cell = label_map.astype(jnp.int32) * classes + shares.argmax(-1)
  # A label to ignore is beyond the last class.
  cells = jnp.zeros(classes * classes, jnp.int32)
  cells = cells.at[cell.ravel()].add(1, mode="drop")
  return cells.reshape(classes, classes)
