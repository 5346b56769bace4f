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
from dinojax.evals import features, knn


def few_shot(
  bank: features.Bank,
  queries: features.Bank,
  *,
  num_classes: int,
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
    num_classes: of both.
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
    UserError: a class has too few images, or shots or tries are below 1.
  """
  if tries < 1 or not shots or min(shots) < 1:
    raise errors.UserError(
      f"shots={tuple(shots)} and tries={tries} must be at least 1; try"
      " shots=1,5 and tries=5"
    )
  labels = jax.device_get(_everywhere(bank.labels, mesh=mesh)).ravel()
  results = {}
  for n in shots:
    rates = []
    for attempt in range(tries):
      rows = draw(labels, num_classes=num_classes, shots=n, seed=(seed, n, attempt))
      some = take(bank, rows, mesh=mesh)
      rates.append(
        knn.knn(
          some,
          queries,
          num_classes=num_classes,
          ks={n, *(k for k in ks if k < n)},
          temperature=temperature,
          mesh=mesh,
        )
      )
    for name in rates[0]:
      values = [rate[name] for rate in rates]
      results[f"{name}_shots{n}"] = float(np.mean(values))
      deviation = np.std(values, ddof=1) if tries > 1 else 0.0
      results[f"{name}_shots{n}_std"] = float(deviation)
  return results


def draw(
  labels: np.ndarray, *, num_classes: int, shots: int, seed: Sequence[int]
) -> np.ndarray:
  """Rows of `shots` images of each class, without replacement: [R] int, rising.

  Args:
    labels: [S * B] int, -1 for rows that cannot be drawn.
    num_classes: C; R is C * shots.
    shots: images of each class.
    seed: of NumPy's generator.

  Raises:
    UserError: a class has fewer images.
  """
  counts = np.bincount(labels[labels >= 0], minlength=num_classes)
  short = np.flatnonzero(counts < shots)
  if len(short):
    raise errors.UserError(
      f"shots={shots} asks for more images than the {counts[short[0]]} readable ones of"
      f" class {short[0]} ({len(short)} of {num_classes} classes have too few); use at"
      f" most {counts.min()} shots, or a train source with more images of each class"
    )
  rng = np.random.default_rng(seed)
  classes = [np.flatnonzero(labels == label) for label in range(num_classes)]
  return np.sort([rng.choice(rows, shots, replace=False) for rows in classes], None)


def take(bank: features.Bank, rows: np.ndarray, *, mesh: Mesh) -> features.Bank:
  """A bank of some rows, in this order, in batches of the same size.

  Args:
    bank: on `mesh`.
    rows: [R] int, places in the bank.
    mesh: of both banks.
  """
  batch = bank.labels.shape[1]
  padded = np.full(-(-len(rows) // batch) * batch, -1, np.int32)
  padded[: len(rows)] = rows
  return _take(bank, padded.reshape(-1, batch), mesh=mesh)


@functools.partial(jax.jit, static_argnames="mesh")
def _everywhere(x, *, mesh):
  return jax.lax.with_sharding_constraint(x, sharding.replicated(mesh))


@functools.partial(jax.jit, static_argnames="mesh")
def _take(bank, rows, *, mesh):
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
      scatter = functools.partial(
        jax.lax.psum_scatter, axis_name=sharding.AXES, tiled=True
      )
      return scatter(x), scatter(label) - 1

    return features.Bank(*jax.lax.map(one, (step, slot, mine)))

  spec = PartitionSpec(None, sharding.AXES)
  return jax.shard_map(
    collect, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec
  )(bank, rows)
