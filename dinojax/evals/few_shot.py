"""k-NN accuracy with a few labelled images of each class.

Source: the evaluation of DINOv2 (arXiv:2304.07193), `--n-per-class-list`. Dimension key
of features.py, and R rows drawn.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from dinojax import errors, sharding
from dinojax.evals import features, knn, labelled


def few_shot(
  bank: features.Bank,
  queries: features.Bank,
  *,
  class_names: tuple[str, ...],
  shots: Sequence[int],
  tries: int,
  seed: int,
  ks: Sequence[int],
  temperature: float,
  mesh: Mesh,
) -> dict[str, float]:
  """Mean and deviation of k-NN accuracy over random choices of the bank's images.

  For n shots, k is n itself and those of `ks` below it.

  Args:
    bank: to draw from.
    queries: to classify, all of them in each try.
    class_names: by label, of both.
    shots: numbers of images of each class.
    tries: choices for each number.
    seed: with shots, try and labels it decides what is drawn, on any mesh.
    ks: as for `knn.knn`.
    temperature: as for `knn.knn`.
    mesh: of both banks.

  Returns:
    {"knn_top1_k5_shots5": mean, "knn_top1_k5_shots5_std": standard deviation of a try
    (over tries - 1; 0 for a single one), ...}.

  Raises:
    UserError: a class has too few images.
  """
  labels = jax.device_get(_everywhere(bank.labels, mesh=mesh)).ravel()
  check(labels, class_names=class_names, shots=shots)
  num_classes, results = len(class_names), {}
  for n in shots:
    accuracies = []
    for attempt in range(tries):
      rows = draw(labels, num_classes=num_classes, shots=n, seed=(seed, n, attempt))
      some = select(bank, rows, mesh=mesh)
      accuracies.append(
        knn.knn(
          some,
          queries,
          num_classes=num_classes,
          ks={n, *(k for k in ks if k < n)},
          temperature=temperature,
          mesh=mesh,
        )
      )
    for name in accuracies[0]:
      values = [accuracy[name] for accuracy in accuracies]
      results[f"{name}_shots{n}"] = float(np.mean(values))
      deviation = np.std(values, ddof=1) if tries > 1 else 0.0
      results[f"{name}_shots{n}_std"] = float(deviation)
  return results


def check(
  labels: np.ndarray, *, class_names: tuple[str, ...], shots: Sequence[int]
) -> None:
  """Raises UserError if a class has fewer images than are to be drawn.

  Args:
    labels: [...] int, negative for rows that cannot be drawn.
    class_names: by label.
    shots: numbers of images of each class.
  """
  counts, most = labelled.count(labels, class_names), max(shots)
  if (short := counts < most).any():
    first = int(short.argmax())
    raise errors.UserError(
      f"--shots={most} asks for more images than the {counts[first]} of class"
      f" {class_names[first]!r} in --train ({short.sum()} of {len(counts)} classes have"
      f" fewer than {most}); --shots={counts.min()} is the most, or give a --train with"
      " more images of each class"
    )


def draw(
  labels: np.ndarray, *, num_classes: int, shots: int, seed: Sequence[int]
) -> np.ndarray:
  """Rows of `shots` images of each class, without replacement: [R] int, rising.

  Args:
    labels: [S * B] int, -1 for rows that cannot be drawn.
    num_classes: C; R is C * shots.
    shots: images of each class.
    seed: of NumPy's generator.
  """
  rng = np.random.default_rng(seed)
  classes = [np.flatnonzero(labels == label) for label in range(num_classes)]
  return np.sort([rng.choice(rows, shots, replace=False) for rows in classes], None)


def select(bank: features.Bank, rows: np.ndarray, *, mesh: Mesh) -> features.Bank:
  """A bank of some rows, in this order, in batches of the same size.

  Args:
    bank: on `mesh`.
    rows: [R] int, places in the bank.
    mesh: of both banks.
  """
  batch = bank.labels.shape[1]
  padded = np.full(-(-len(rows) // batch) * batch, -1, np.int32)
  padded[: len(rows)] = rows
  return _select(bank, padded.reshape(-1, batch), mesh=mesh)


@functools.partial(jax.jit, static_argnames="mesh")
def _everywhere(x, *, mesh):
  return jax.lax.with_sharding_constraint(x, sharding.replicated(mesh))


@functools.partial(jax.jit, static_argnames="mesh")
def _select(bank, rows, *, mesh):
  """Rows [S', B] of the bank; -1 for padding."""
  batch = bank.labels.shape[1]

  def collect(bank, rows):  # on each device, with its [S, b, ...] of the bank
    local = bank.labels.shape[1]
    slot = rows % batch - jax.lax.axis_index(sharding.AXES) * local
    mine = (rows >= 0) & (slot >= 0) & (slot < local)
    step, slot = jnp.where(mine, rows // batch, 0), jnp.where(mine, slot, 0)

    def one(args):
      step, slot, mine = args
      # All others add zeros: what is left of the sum is the owner's, bit for bit.
      x = jnp.where(mine[:, None], bank.features[step, slot], 0)
      label = jnp.where(mine, bank.labels[step, slot] + 1, 0)
      return sharding.reduce_scatter(x), sharding.reduce_scatter(label) - 1

    return features.Bank(*jax.lax.map(one, (step, slot, mine)))

  spec = PartitionSpec(None, sharding.AXES)
  return jax.shard_map(
    collect, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec
  )(bank, rows)
