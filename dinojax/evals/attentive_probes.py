"""Attentive probes: the function, its gradients and its optimiser, for a whole grid.

Dimension key of attentive.py.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from dinojax import sharding

RATES = tuple(digit * 10.0**power for power in range(-5, -2) for digit in (1, 2, 5))
RATES = (*RATES, 0.01)  # for a batch of 256
DECAYS = (5e-4, 1e-3, 5e-2)
GRID = tuple(itertools.product(RATES, DECAYS))
NAMES = tuple(f"lr{rate:g}_wd{decay:g}" for rate, decay in GRID)
HEAD_WIDTH = 64
WARMUP = 0.1  # of all steps
TOPS = (1, 5)


class Probe(NamedTuple):
  """One probe; of all, each leaf has a leading axis H."""

  query: jax.Array  # [D]
  key: jax.Array  # [D, D]
  value: jax.Array  # [D, D]
  value_bias: jax.Array  # [D]
  kernel: jax.Array  # [D, C]
  bias: jax.Array  # [C]


DECAYED = Probe(query=1, key=1, value=1, value_bias=0, kernel=1, bias=0)


def attention_heads(width: int) -> int:
  """A: D / 64, or the next lower number that divides D."""
  return next(n for n in range(max(width // HEAD_WIDTH, 1), 0, -1) if width % n == 0)


def logits(probe: Probe, x: jax.Array) -> jax.Array:
  """Of one probe: patch tokens [B, N, D] -> [B, C]."""
  heads = attention_heads(x.shape[-1])
  dot = functools.partial(jnp.einsum, precision="highest")
  split = lambda w: w.reshape(*w.shape[:-1], heads, -1)  # noqa: E731
  query = dot("dae,ae->ad", split(probe.key), split(probe.query))
  scores = dot("bnd,ad->ban", x, query) / (x.shape[-1] // heads) ** 0.5
  pooled = dot("ban,bnd->bad", jax.nn.softmax(scores, axis=-1), x)
  values = dot("bad,dae->bae", pooled, split(probe.value))
  values = values.reshape(len(x), -1) + probe.value_bias
  return dot("bd,dc->bc", values, probe.kernel) + probe.bias


def loss(probe: Probe, x: jax.Array, labels: jax.Array) -> jax.Array:
  """Sum of the cross-entropies of the images of a batch that have a label."""
  scores = logits(probe, x)
  own = jnp.take_along_axis(scores, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
  return jnp.where(labels >= 0, jax.nn.logsumexp(scores, axis=1) - own, 0).sum()


def rate(steps: int) -> optax.Schedule:
  """The learning rate for a peak of 1: from 0 by a line, then to 0 by a cosine."""
  warmup = int(WARMUP * steps)

  def value_at(step):
    rising = step / max(warmup - 1, 1)
    falling = (step - warmup) / max(steps - warmup - 1, 1)
    return jnp.where(step < warmup, rising, (1 + jnp.cos(jnp.pi * falling)) / 2)

  return value_at


def optimizer(steps: int, batch_size: int) -> optax.GradientTransformation:
  """AdamW, with a rate and a decay of each probe; biases have no decay."""
  rates, decays = (np.array(x, np.float32) for x in zip(*GRID, strict=True))
  rates = rates * batch_size / 256

  def of_each(values, x):
    return values.reshape(-1, *[1] * (x.ndim - 1))

  def decay_and_scale(updates, params):
    return jax.tree.map(
      lambda u, p, on: (u + on * of_each(decays, p) * p) * of_each(rates, p),
      *(updates, params, DECAYED),
    )

  return optax.chain(
    optax.scale_by_adam(b1=0.9, b2=0.95),
    optax.stateless(decay_and_scale),
    optax.scale_by_learning_rate(rate(steps)),
  )


def first_probes(width: int, num_classes: int, seed: int) -> Probe:
  """Probes of N(0, 0.02), with biases of 0; all begin alike."""
  shapes = Probe(
    *((width,), (width, width), (width, width), (width,)),
    *((width, num_classes), (num_classes,)),
  )
  keys = Probe(*jax.random.split(jax.random.key(seed), len(shapes)))

  def draw(key, shape, decayed):
    if not decayed:  # a bias
      return jnp.zeros((len(GRID), *shape))
    return jnp.broadcast_to(0.02 * jax.random.normal(key, shape), (len(GRID), *shape))

  return Probe(*map(draw, keys, shapes, DECAYED))


def gradients(probes: Probe, x: jax.Array, labels: jax.Array, *, mesh: Mesh) -> Probe:
  """Gradients of all probes' mean loss, one probe at a time: only one is in memory.

  Args:
    probes: all of them, on every device.
    x: [B, N, D], split over the devices.
    labels: [B].
    mesh: of the devices.
  """

  def on_device(probes, x, labels):
    count = jax.lax.psum((labels >= 0).sum(), sharding.AXES)
    # A copy on each device, so that gradients are added up once, behind the loop.
    own = jax.lax.pcast(probes, sharding.AXES, to="varying")
    grads = jax.lax.map(lambda probe: jax.grad(loss)(probe, x, labels), own)
    grads = jax.lax.psum(grads, sharding.AXES)
    return jax.tree.map(lambda g: g / jnp.maximum(count, 1), grads)

  everywhere = PartitionSpec()
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(everywhere, sharding.BATCH, sharding.BATCH),
    out_specs=everywhere,
  )(probes, x, labels)


@functools.partial(jax.jit, static_argnames="mesh")
def count_right(
  probes: Probe, x: jax.Array, labels: jax.Array, *, mesh: Mesh
) -> tuple[jax.Array, jax.Array]:
  """How often each probe is right by top-1 and top-5, int32 [2, H], and of how many.

  Args:
    probes: all of them, on every device.
    x: patches [B, N, D], split over the devices.
    labels: [B], -1 for none.
    mesh: of the devices.
  """

  def on_device(probes, x, labels):
    x, wanted = x.astype(jnp.float32), jnp.maximum(labels, 0)[:, None]

    def of_probe(probe):
      scores = logits(probe, x)
      own = jnp.take_along_axis(scores, wanted, axis=1)  # NaN beyond the last class
      earlier = jnp.arange(scores.shape[1]) < wanted
      rank = ((scores > own) | ((scores == own) & earlier)).sum(1)
      there = (labels >= 0) & jnp.isfinite(own[:, 0])
      return jnp.stack([(there & (rank < top)).sum() for top in TOPS])

    own = jax.lax.pcast(probes, sharding.AXES, to="varying")
    right = jax.lax.map(of_probe, own).T
    return jax.lax.psum((right, (labels >= 0).sum()), sharding.AXES)

  everywhere = PartitionSpec()
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(everywhere, sharding.BATCH, sharding.BATCH),
    out_specs=everywhere,
  )(probes, x, labels)
