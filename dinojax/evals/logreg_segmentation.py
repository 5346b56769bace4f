"""Segmentation by logistic regression on patches, without a training loop to tune.

Source: the evaluation of CAPI, in the public code (arXiv:2502.08769): each patch has
the class of most of its pixels, features are standardised, and an L2-regularised
logistic regression is fitted by L-BFGS, for eight strengths.
DIFFERS: the strength is chosen by the mean IoU of held-out patches, not of their
pixels, and then all patches are fitted. Logits of test patches are resized to pixels;
CAPI paints a whole patch with its class.

Dimension key of patches.py, and R rows of a step of the memory.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dinojax import errors, sharding
from dinojax.data import sources
from dinojax.evals import patches, segmentation

STRENGTHS = tuple((10.0 ** np.linspace(-6, 5, 8)).tolist())
HELD_OUT = 0.1  # of the training images, to choose a strength on
ITERATIONS = 1_000  # at most, for each strength
TOLERANCE = 1e-6  # of the mean loss's gradient; single precision knows no less
EPSILON = 1e-12  # of the variance of a feature


class Norm(NamedTuple):
  """Statistics of all labelled patches."""

  mean: jax.Array  # [D]
  scale: jax.Array  # [D] 1 / standard deviation


class Weights(NamedTuple):
  """The classifier, of standardised patches."""

  kernel: jax.Array  # [D, C]
  bias: jax.Array  # [C]


def logreg_segmentation(
  reader: patches.Reader,
  memory: patches.Memory,
  test: sources.DenseSource,
  *,
  class_names: tuple[str, ...],
  seed: int,
) -> dict:
  """Fits a classifier on patches of training images; segments `test` by it.

  Args:
    reader: the network.
    memory: patches of training images.
    test: images to segment.
    class_names: by value of the label maps.
    seed: of what is held out.

  Returns:
    As `segmentation.scores`, under "logreg_segmentation_", the number of patches, and
    the strength "c".

  Raises:
    UserError: labelled patches are of one class or image, or features are not finite.
  """
  mesh = reader.mesh
  fitted, held_out = _split(memory, mesh, seed)
  norm = statistics(memory)
  model = Weights(
    np.zeros((memory.bank.features.shape[-1], len(class_names)), np.float32),
    np.zeros(len(class_names), np.float32),
  )
  best, top, start = None, -1.0, model
  hidden = None if jax.process_index() == 0 else True  # None: unless no terminal
  for strength in tqdm.tqdm(
    STRENGTHS, desc="logistic regression", unit="C", leave=False, disable=hidden
  ):
    model = fit(memory, fitted, norm, model, strength, mesh=mesh)
    reader.progress()
    pixels = jax.device_get(_confusion(memory, held_out, norm, model))
    if (miou := np.nanmean(segmentation.intersection_over_union(pixels))) > top:
      best, top, start = strength, miou, model
  model = fit(memory, fitted | held_out, norm, start, best, mesh=mesh)
  (pixels,) = segmentation.confusion(
    reader,
    test,
    logits,
    (model, norm),
    num_classes=len(class_names),
    description="patches of --test",
  )
  found = segmentation.scores(pixels, class_names)
  found |= {"patches": patches.count(memory), "c": best}
  return {f"logreg_segmentation_{name}": value for name, value in found.items()}


def _split(memory: patches.Memory, mesh: Mesh, seed: int) -> tuple:
  """Which rows [T, R] are fitted at first, and which are of images held out."""
  gather = jax.jit(_labels, out_shardings=sharding.replicated(mesh))
  labels = jax.device_get(gather(memory))
  known = labels >= 0
  of_row = np.arange(labels.size).reshape(labels.shape) // memory.of_image
  shown = np.unique(of_row[known])
  classes = np.unique(labels[known])
  if len(shown) < 2 or len(classes) < 2:
    raise errors.UserError(
      f"logreg_segmentation needs 2 images and 2 classes, and --train has"
      f" {len(shown)} with a labelled pixel, of {len(classes)} classes; give another"
      " --train"
    )
  count = min(max(round(HELD_OUT * len(shown)), 1), len(shown) - 1)
  out = np.random.default_rng(seed).permutation(shown)[:count]
  held_out = known & np.isin(of_row, out)
  where = NamedSharding(mesh, PartitionSpec(None, sharding.AXES))

  def put(x):
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

  return put(known & ~held_out), put(held_out)


def _labels(memory: patches.Memory) -> jax.Array:
  """The class of most labelled pixels of each patch, int32 [T, R]; -1 for none."""
  return jnp.where(memory.bank.labels < 0, -1, memory.shares.argmax(-1))


@jax.jit
def statistics(memory: patches.Memory) -> Norm:
  """Mean and deviation of each feature over all labelled patches."""
  known = (memory.bank.labels >= 0)[..., None]
  count = known.sum()
  mean = jnp.where(known, memory.bank.features, 0).sum((0, 1)) / count
  square = jnp.where(known, jnp.square(memory.bank.features - mean), 0).sum((0, 1))
  return Norm(mean, jax.lax.rsqrt(square / count + EPSILON))


def _scores(model: Weights, norm: Norm, x: jax.Array) -> jax.Array:
  x = (x - norm.mean) * norm.scale
  return jnp.dot(x, model.kernel, precision="highest") + model.bias


def logits(state: tuple[Weights, Norm], x: jax.Array) -> jax.Array:
  """[B, N, D] patches -> [B, N, 1, C]."""
  return _scores(*state, x)[:, :, None]


@jax.jit
def _confusion(memory, rows, norm, model) -> jax.Array:
  """Patches of `rows` by their class and the predicted one, int32 [C, C]."""
  classes = memory.shares.shape[-1]
  labels = jnp.where(rows, _labels(memory), classes).astype(jnp.int32)
  cell = labels * classes + _scores(model, norm, memory.bank.features).argmax(-1)
  cells = jnp.zeros(classes * classes, jnp.int32)
  return cells.at[cell.ravel()].add(1, mode="drop").reshape(classes, classes)


def fit(
  memory: patches.Memory,
  rows: jax.Array,
  norm: Norm,
  first: Weights,
  strength: float,
  *,
  mesh: Mesh,
) -> Weights:
  """The classifier of one strength, by SciPy's L-BFGS over gradients on the mesh.

  Each process runs the same L-BFGS on the host; it holds some 30 * D * C numbers.

  Args:
    memory: patches.
    rows: bool [T, R] of those to fit.
    norm: their statistics.
    first: where to begin.
    strength: C of scikit-learn: the loss is added up C times, beside |kernel|^2 / 2.
    mesh: of the memory.
  """
  from scipy import optimize  # Here: it costs half a second of every command.

  def unflatten(flat):
    flat, split = np.float32(flat), first.kernel.size
    return Weights(flat[:split].reshape(first.kernel.shape), flat[split:])

  count = int(rows.sum())
  decay = 1 / (strength * count)

  def loss(flat):
    value, grad = jax.device_get(
      mean_loss(memory, rows, norm, unflatten(flat), mesh=mesh)
    )
    kernel = flat[: first.kernel.size]
    grad = np.concatenate([np.float64(grad.kernel).ravel(), np.float64(grad.bias)])
    grad[: kernel.size] += decay * kernel
    return float(value) + decay / 2 * float(kernel @ kernel), grad

  found = optimize.minimize(
    loss,
    np.concatenate([np.float64(x).ravel() for x in first]),
    jac=True,
    method="L-BFGS-B",
    options=dict(maxiter=ITERATIONS, gtol=TOLERANCE, ftol=0.0),
  )
  return unflatten(found.x)


@functools.partial(jax.jit, static_argnames="mesh")
def mean_loss(
  memory: patches.Memory,
  rows: jax.Array,
  norm: Norm,
  model: Weights,
  *,
  mesh: Mesh,
) -> tuple[jax.Array, Weights]:
  """Mean cross-entropy of the rows, and its gradient, one step of the memory at a time.

  Args:
    memory: patches, split over the devices.
    rows: bool [T, R] of those that count.
    norm: statistics.
    model: the classifier.
    mesh: of the devices.
  """

  def on_device(x, labels, rows, norm, model):
    own = jax.lax.pcast((norm, model), sharding.AXES, to="varying")

    def of_step(total, step):
      x, labels, rows = step

      def added(model):
        scores = _scores(model, own[0], x)
        picked = jnp.take_along_axis(scores, jnp.maximum(labels, 0)[:, None], axis=1)
        error = jax.nn.logsumexp(scores, axis=1) - picked[:, 0]
        return jnp.where(rows, error, 0).sum()

      return jax.tree.map(jnp.add, total, jax.value_and_grad(added)(own[1])), None

    zero = jax.tree.map(jnp.zeros_like, (own[1].bias[0], own[1]))
    total, _ = jax.lax.scan(of_step, zero, (x, labels, rows))
    count = jax.lax.psum(rows.sum(), sharding.AXES)
    return jax.tree.map(lambda x: x / count, jax.lax.psum(total, sharding.AXES))

  split, everywhere = PartitionSpec(None, sharding.AXES), PartitionSpec()
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(split, split, split, everywhere, everywhere),
    out_specs=everywhere,
  )(memory.bank.features, _labels(memory), rows, norm, model)
