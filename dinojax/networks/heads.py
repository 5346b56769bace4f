"""DINOHead, the projection head: an MLP to a unit vector, then prototypes.

Projection, of a distillation: an MLP to the width of another network.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinojax import sharding
from dinojax.networks import layers, vit


class DINOHead(nn.Module):
  """Projection head of DINO (arXiv:2104.14294). Fields are those of `config.heads.*`.

  hidden: width of the MLP. bottleneck: width of the unit vector. prototypes: K.
  weight_norm: whether prototypes have a direction and a gain, as DINOv2's; DINOv3's are
  a plain matrix.
  """

  hidden: int
  bottleneck: int
  prototypes: int
  dtype: str
  weight_norm: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., D] -> [..., K] float32: cosines with the prototypes, times their norms."""
    dense = functools.partial(
      nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02)
    )
    for name in ("fc1", "fc2"):
      x = layers.gelu(dense(self.hidden, name=name)(x))
    x = dense(self.bottleneck, name="fc3")(x).astype(jnp.float32)
    x = x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
    kind = Prototypes if self.weight_norm else PlainPrototypes
    weights = kind(self.prototypes, name="prototypes")(self.bottleneck)
    # Accumulated and kept in float32: at a teacher temperature of 0.04, bfloat16's
    # rounding of a cosine near 1 would change its probability by 5%.
    logits = jax.lax.dot_general(
      x.astype(self.dtype),
      weights.astype(self.dtype),
      (((x.ndim - 1,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    # Prototypes are sharded over K, but their logits must be sharded over the batch.
    return sharding.constrain_batch(logits)


class Prototypes(nn.Module):
  """Prototypes with weight norm: gain_k * v_k / |v_k|."""

  count: int

  @nn.compact
  def __call__(self, width: int) -> jax.Array:
    """Returns the weights, [width, K] float32."""
    v = self.param("v", vit.uniform(width**-0.5), (width, self.count))
    gain = self.param("gain", nn.initializers.ones, (self.count,))
    return v * (gain / jnp.sqrt(jnp.square(v).sum(0)))


class PlainPrototypes(nn.Module):
  """Prototypes as a matrix of any norms."""

  count: int

  @nn.compact
  def __call__(self, width: int) -> jax.Array:
    """Returns the weights, [width, K] float32."""
    init = nn.initializers.normal(0.02)
    return self.param("kernel", init, (width, self.count))


class Projection(nn.Module):
  """Features in another network's space: an MLP, as AM-RADIO's (arXiv:2312.06709).

  width: T, of that network.
  """

  width: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., D] -> [..., T] float32."""
    dense = functools.partial(nn.Dense, dtype=self.dtype)
    x = dense(x.shape[-1], name="fc1")(x).astype(jnp.float32)
    x = layers.gelu(nn.LayerNorm(name="norm")(x))
    return dense(self.width, name="fc2")(x).astype(jnp.float32)
