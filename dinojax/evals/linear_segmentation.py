"""Linear segmentation: a linear layer on frozen patches, for several learning rates.

Source: the protocol of DINOv3 for ADE20K, in the public code: batch norm, channel
dropout and a linear layer, AdamW, the best head by mean IoU.
DIFFERS: DINOv3 augments images, and resizes logits to pixels in the loss. Here patches
are computed once and remembered, as for k-NN segmentation; the loss is that of a patch,
with the shares of its pixels as soft labels, and the norm's statistics are those of all
patches. So all rates cost minutes, in bounded memory.

Dimension key of patches.py, and H learning rates, n patches of a step.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dinojax import errors, sharding
from dinojax.data import sources
from dinojax.evals import features, linear, patches, segmentation

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # DINOv3's is 1e-3
DECAY = 1e-3
DROPOUT = 0.1
WARMUP = 1_500 / 40_000  # of all steps
EPSILON = 1e-5  # of the norm's variance
STEPS_PER_CALL = 50


class Heads(NamedTuple):
  """Linear layers, one for each rate."""

  kernel: jax.Array  # [H, D, C]
  bias: jax.Array  # [H, C]


class Norm(NamedTuple):
  """Statistics of all remembered patches."""

  mean: jax.Array  # [D]
  scale: jax.Array  # [D] 1 / standard deviation


def linear_segmentation(
  reader: patches.Reader,
  memory: patches.Memory,
  evaluated: dict[str, sources.DenseSource],
  *,
  class_names: tuple[str, ...],
  steps: int,
  batch_size: int,
  seed: int,
) -> dict:
  """Trains all heads on remembered patches; evaluates the best one on "test".

  Args:
    reader: the network.
    memory: patches of training images.
    evaluated: "test", and perhaps "val", on which the best head is chosen; without it
      that is done on "test", as published numbers do.
    class_names: by value of the label maps.
    steps: of AdamW.
    batch_size: n, a multiple of the devices.
    seed: of first weights, order and dropout.

  Returns:
    As `segmentation.scores`, under "linear_segmentation_", with the head's name,
    what it was chosen on, and the mean IoU of all heads there.

  Raises:
    UserError: there is no labelled patch or pixel, or features are not finite.
  """
  linear.check_batch(batch_size, reader.mesh, flag="segmentation_batch")
  norm = statistics(memory)
  heads = fit(
    memory,
    norm,
    steps=steps,
    batch_size=batch_size,
    seed=seed,
    mesh=reader.mesh,
  )
  confusions = {
    name: segmentation.confusion(
      reader,
      source,
      logits,
      (heads, norm),
      num_classes=len(class_names),
      description=f"patches of --{name}",
    )
    for name, source in evaluated.items()
  }
  chosen_on = "val" if "val" in evaluated else "test"
  iou = segmentation.intersection_over_union(confusions[chosen_on])  # [H, C]
  means = np.nanmean(iou, axis=1)
  best = int(means.argmax())
  names = [f"lr{rate:g}" for rate in RATES]
  found = segmentation.scores(confusions["test"][best], class_names)
  found |= {
    "head": names[best],
    "chosen_on": chosen_on,
    "grid": dict(zip(names, means.tolist(), strict=True)),
    "patches": patches.count(memory),
  }
  return {f"linear_segmentation_{name}": value for name, value in found.items()}


@jax.jit
def statistics(memory: patches.Memory) -> Norm:
  """Mean and deviation of each channel over all labelled patches."""
  known = (memory.bank.labels >= 0)[..., None]
  count = known.sum()
  mean = jnp.where(known, memory.bank.features, 0).sum((0, 1)) / count
  square = jnp.where(known, jnp.square(memory.bank.features - mean), 0).sum((0, 1))
  return Norm(mean, jax.lax.rsqrt(square / count + EPSILON))


def logits(state: tuple[Heads, Norm], x: jax.Array) -> jax.Array:
  """[B, N, D] patches -> [B, N, H, C]."""
  heads, norm = state
  x = (x - norm.mean) * norm.scale
  x = jnp.einsum("bnd,hdc->bnhc", x, heads.kernel, precision="highest")
  return x + heads.bias


def rate(steps: int) -> optax.Schedule:
  """The learning rate of DINOv3's protocol, for a peak of 1."""
  warmup = WARMUP * steps

  def value_at(step):
    rising = (1 - (1 - step / warmup) * (1 - 1e-6)) * (1 - step / steps)
    falling = (1 + jnp.cos(math.pi * (step + 1) / steps)) / 2
    return jnp.where(step < warmup, rising, falling)

  return value_at


def optimizer(steps: int) -> optax.GradientTransformation:
  """AdamW with a learning rate for each head."""
  adamw = optax.adamw(rate(steps), b1=0.9, b2=0.999, weight_decay=DECAY)
  rates = np.array(RATES, np.float32)

  def scale(updates, _):
    return jax.tree.map(lambda u: u * rates.reshape(-1, *[1] * (u.ndim - 1)), updates)

  return optax.chain(adamw, optax.stateless(scale))


def loss(
  heads: Heads, norm: Norm, x: jax.Array, shares: jax.Array, key: jax.Array
) -> jax.Array:
  """Sum over all heads of their mean cross-entropy, with dropout of channels.

  Args:
    heads: all of them.
    norm: of the patches.
    x: [n, D] patches.
    shares: [n, C] of classes, their soft labels.
    key: of the dropout, the same for all heads.
  """
  kept = jax.random.bernoulli(key, 1 - DROPOUT, x.shape)
  x = jnp.where(kept, (x - norm.mean) * norm.scale / (1 - DROPOUT), 0)
  x = jnp.einsum("nd,hdc->nhc", x, heads.kernel, precision="highest") + heads.bias
  own = (x * shares[:, None]).sum(-1)
  return (jax.nn.logsumexp(x, axis=-1) - own).mean(0).sum()


def fit(
  memory: patches.Memory,
  norm: Norm,
  *,
  steps: int,
  batch_size: int,
  seed: int,
  mesh: Mesh,
) -> Heads:
  """The heads after all steps; arguments as of `linear_segmentation`."""
  labels = np.asarray(multihost_utils.process_allgather(memory.bank.labels, tiled=True))
  if not (labels >= 0).any():
    raise errors.UserError("--train has no readable image with a labelled pixel")
  tx, key = optimizer(steps), jax.random.key(seed)
  stream = linear.order(labels, seed=seed, batch_size=batch_size)

  def start():
    sizes = len(RATES), memory.bank.features.shape[-1], memory.shares.shape[-1]
    kernel = 0.01 * jax.random.normal(key, sizes[1:])  # the same for each rate
    heads = Heads(jnp.broadcast_to(kernel, sizes), jnp.zeros((sizes[0], sizes[2])))
    return heads, tx.init(heads)

  def step(memory, norm, state, batch):
    (heads, opt_state), (place, rows) = state, batch
    x, _ = features.fetch(memory.bank, rows, mesh)
    shares, _ = features.fetch(memory.bank.replace(features=memory.shares), rows, mesh)
    grads = jax.grad(loss)(heads, norm, x, shares, jax.random.fold_in(key, place))
    updates, opt_state = tx.update(grads, opt_state, heads)
    return (optax.apply_updates(heads, updates), opt_state), None

  everywhere = sharding.replicated(mesh)

  @functools.partial(jax.jit, donate_argnums=2, out_shardings=everywhere)
  def run(memory, norm, state, batches):
    return jax.lax.scan(functools.partial(step, memory, norm), state, batches)[0]

  state = jax.jit(start, out_shardings=everywhere)()
  hidden = None if jax.process_index() == 0 else True  # None: unless no terminal
  with tqdm.tqdm(
    total=steps, desc="segmentation heads", unit="step", leave=False, disable=hidden
  ) as bar:
    for first in range(0, steps, STEPS_PER_CALL):
      places = np.arange(first, min(first + STEPS_PER_CALL, steps), dtype=np.int32)
      rows = np.stack([next(stream) for _ in places]).astype(np.int32)
      state = jax.block_until_ready(run(memory, norm, state, (places, rows)))
      bar.update(len(places))
  return state[0]
