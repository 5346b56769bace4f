"""Linear layers on frozen patches, trained on the pixels below them, several at once.

Source: DINOv3's linear segmentation and depth, in the public code: dropout of channels,
batch norm, a 1 x 1 convolution, and outputs resized bilinearly to the pixels, where the
loss is. A goal says what outputs mean: classes (linear_segmentation.py) or metres
(depth.py). All heads see the same crops; they differ in their learning rate.

Dimension key of patches.py, and H heads, O outputs of a head, K sums of a loss.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jax.sharding import Mesh, PartitionSpec

from dinojax import errors, sharding
from dinojax.data import bad_records, dense_crops, dense_records, mixture, sources
from dinojax.evals import patches

EPSILON = 1e-5  # of the norm's variance
MOMENTUM = 0.1  # of its running statistics


class Goal(Protocol):
  """What the heads are trained for; hashable."""

  rates: tuple[float, ...]  # peaks, of the heads
  outputs: int  # O
  dropout: float  # of channels

  def optimizer(self, steps: int) -> optax.GradientTransformation:
    """For one head, and a peak of 1."""

  def values(self, outputs: jax.Array) -> jax.Array:
    """Outputs [..., O] of patches -> what is resized to pixels."""

  def sums(self, values: jax.Array, of_pixels: jax.Array) -> jax.Array:
    """Values [S, S, ...] and map [S, S] of an image -> [K], what the loss needs."""

  def loss(self, sums: jax.Array, pixels: int, progress: jax.Array) -> jax.Array:
    """[K], added up over a batch -> the loss; progress: share of all steps, 0..1."""


class Head(NamedTuple):
  """One head; of all, each leaf has a leading axis H."""

  scale: jax.Array  # [D] of the norm
  shift: jax.Array  # [D]
  kernel: jax.Array  # [D, O]
  bias: jax.Array  # [O]


class Norm(NamedTuple):
  """Running statistics of the patches, the same for all heads."""

  mean: jax.Array  # [D]
  variance: jax.Array  # [D]


def outputs(head: Head, x: jax.Array) -> jax.Array:
  """Of one head: normalised patches [..., D] -> [..., O]."""
  x = x * head.scale + head.shift
  return jnp.einsum("...d,do->...o", x, head.kernel, precision="highest") + head.bias


def normalize(norm: Norm, x: jax.Array) -> jax.Array:
  """Patches [..., D] by running statistics."""
  return (x - norm.mean) * jax.lax.rsqrt(norm.variance + EPSILON)


class Predict(NamedTuple):
  """What heads predict; equal for equal goals, so that no program compiles twice."""

  goal: Goal

  def __call__(self, state: tuple[Head, Norm], x: jax.Array) -> jax.Array:
    """Patches [B, N, D] -> values [B, N, H, ...] of all heads."""
    heads, norm = state
    x = normalize(norm, x)
    found = jax.vmap(lambda head: self.goal.values(outputs(head, x)), out_axes=2)
    return found(heads)


def resize(values: jax.Array, side: int) -> jax.Array:
  """Values [N, ...] of a square of patches -> [S, S, ...], bilinearly."""
  grid = round(len(values) ** 0.5)
  values = values.reshape(grid, grid, *values.shape[1:])
  shape = (side, side, *values.shape[2:])
  return jax.image.resize(values, shape, "linear", precision="highest")


def first_state(goal: Goal, width: int, seed: int) -> tuple[Head, Norm]:
  """Heads of N(0, 0.01), all alike, and statistics of nothing yet; width: D."""
  count = len(goal.rates)
  kernel = 0.01 * jax.random.normal(jax.random.key(seed), (width, goal.outputs))
  heads = Head(
    scale=jnp.ones((count, width)),
    shift=jnp.zeros((count, width)),
    kernel=jnp.broadcast_to(kernel, (count, *kernel.shape)),
    bias=jnp.zeros((count, goal.outputs)),
  )
  return heads, Norm(jnp.zeros(width), jnp.ones(width))


def gradients(
  goal: Goal,
  heads: Head,
  x: jax.Array,
  of_pixels: jax.Array,
  progress: jax.Array,
  *,
  mesh: Mesh,
) -> Head:
  """Gradients of all heads, one head and one image at a time: pixels are many.

  Args:
    goal: of the heads.
    heads: all of them, on every device.
    x: [B, N, D] normalised patches, split over the devices.
    of_pixels: [B, S, S] maps.
    progress: share of all steps.
    mesh: of the devices.
  """
  pixels = of_pixels.size

  def sums(head, x, of_pixels):
    @jax.checkpoint
    def of_image(image):
      x, of_pixels = image
      values = resize(goal.values(outputs(head, x)), of_pixels.shape[0])
      return goal.sums(values, of_pixels)

    return jax.lax.map(of_image, (x, of_pixels)).sum(0)

  def on_device(heads, x, of_pixels, progress):
    # A copy on each device, so that gradients are added up once, behind the loops.
    own = jax.lax.pcast(heads, sharding.AXES, to="varying")
    total = jax.lax.map(lambda head: sums(head, x, of_pixels), own)
    total = jax.lax.psum(total, sharding.AXES)  # [H, K]
    loss = lambda total: goal.loss(total, pixels, progress)  # noqa: E731
    slopes = jax.lax.pcast(jax.vmap(jax.grad(loss))(total), sharding.AXES, to="varying")

    def of_head(pair):
      head, slope = pair
      _, pull = jax.vjp(lambda head: sums(head, x, of_pixels), head)
      return pull(slope)[0]

    return jax.lax.psum(jax.lax.map(of_head, (own, slopes)), sharding.AXES)

  everywhere = PartitionSpec()
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(everywhere, sharding.BATCH, sharding.BATCH, everywhere),
    out_specs=everywhere,
  )(heads, x, of_pixels, progress)


def train_step(
  goal: Goal,
  tx: optax.GradientTransformation,
  state: tuple,
  x: jax.Array,
  of_pixels: jax.Array,
  key: jax.Array,
  *,
  steps: int,
  mesh: Mesh,
) -> tuple:
  """One update of all heads.

  Args:
    goal: of the heads.
    tx: its optimiser.
    state: (heads, norm, states of the optimiser [H], step).
    x: [B, N, D] patches.
    of_pixels: [B, S, S] maps.
    key: of the dropout.
    steps: in all.
    mesh: of the arrays.
  """
  heads, norm, opt_state, step = state
  if goal.dropout:
    kept = jax.random.bernoulli(
      jax.random.fold_in(key, step), 1 - goal.dropout, (len(x), 1, x.shape[-1])
    )
    x = jnp.where(kept, x / (1 - goal.dropout), 0)
  mean = x.mean((0, 1))
  variance = jnp.square(x - mean).mean((0, 1))
  count = x.shape[0] * x.shape[1]
  running = Norm(mean, variance * count / max(count - 1, 1))
  norm = jax.tree.map(lambda a, b: a + MOMENTUM * (b - a), norm, running)
  x = normalize(Norm(mean, variance), x)
  grads = gradients(goal, heads, x, of_pixels, step / steps, mesh=mesh)
  updates, opt_state = jax.vmap(tx.update)(grads, opt_state, heads)
  rates = np.array(goal.rates, np.float32)
  updates = jax.tree.map(lambda u: u * rates.reshape(-1, *[1] * (u.ndim - 1)), updates)
  return optax.apply_updates(heads, updates), norm, opt_state, step + 1


def fit(
  reader: patches.Reader,
  source: sources.Source,
  goal: Goal,
  *,
  maps: dense_records.Kind,
  crop: dense_crops.Crop,
  width: int,
  steps: int,
  batch_size: int,
  seed: int,
) -> tuple[Head, Norm]:
  """All heads after all steps, and the statistics of the patches that they saw.

  Args:
    reader: the network.
    source: images with maps.
    goal: of the heads.
    maps: the kind of the maps.
    crop: the kind of training crops.
    width: D.
    steps: in all.
    batch_size: B, a multiple of the devices.
    seed: of first weights, order, crops and dropout.

  Raises:
    UserError: features are not finite.
  """
  tx, mesh, key = goal.optimizer(steps), reader.mesh, jax.random.key(seed)
  everywhere = sharding.replicated(mesh)

  def start():
    heads, norm = first_state(goal, width, seed)
    return heads, norm, jax.vmap(tx.init)(heads), jnp.int32(0)

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=everywhere)
  def step(state, x, of_pixels):
    x = x.astype(jnp.float32)
    how = dict(steps=steps, mesh=mesh)
    state = train_step(goal, tx, state, x, of_pixels, key, **how)
    return state, jnp.isfinite(x).all()

  state, pending = jax.jit(start, out_shardings=everywhere)(), []
  for image, of_pixels in _batches(
    reader, source, maps=maps, crop=crop, steps=steps, batch_size=batch_size, seed=seed
  ):
    state, finite = step(state, reader.apply(reader.params, image), of_pixels)
    pending.append(finite)
    if len(pending) > 1:  # one step ahead of the device, no more
      _check_finite(pending.pop(0), source)
  _check_finite(pending[0], source)
  return state[0], state[1]


def _check_finite(finite: jax.Array, source: sources.Source) -> None:
  if not finite:
    raise errors.UserError(
      f"{source.where}: patch features are not finite; check the weights, or try"
      " --dtype=float32"
    )


def _batches(
  reader, source, *, maps, crop, steps, batch_size, seed
) -> Iterator[tuple[jax.Array, jax.Array]]:
  """Yields images [B, S, S, 3] and maps [B, S, S] of each step, on the mesh."""
  data = mixture.Mixture([source], [1.0])
  rows = sharding.local_positions(reader.mesh, batch_size)
  batches = dense_crops.open_batches(
    data,
    seed=seed,
    batch_size=batch_size,
    rows=rows,
    maps=maps,
    kind=crop,
    workers=reader.workers,
  )
  monitor = bad_records.Monitor(data, max_bad_share=1.0)
  hidden = None if jax.process_index() == 0 else True  # None: unless no terminal
  try:
    for _ in tqdm.trange(steps, desc="heads", unit="step", leave=False, disable=hidden):
      batch = next(batches)
      monitor.update(batch.pop("bad_records"))
      batch = sharding.put_batch(reader.mesh, batch, rows, batch_size)
      yield batch["image"], batch["map"]
      reader.progress()
  finally:
    batches.close()
