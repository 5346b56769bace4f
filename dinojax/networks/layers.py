"""Layers of a block: Dense for several resolutions, its bias, GELU and LayerScale.

Written for memory and speed: what the backward pass needs is small, and in `dtype`.
"""

from collections.abc import Sequence

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dinojax import sharding

_dense_init = nn.initializers.normal(0.02)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  """Adds a float32 bias [D] to [..., D] of any dtype; returns the dtype of `x`."""
  return x + bias.astype(x.dtype)


def _add_bias_backward(_, grad):
  rows = einops.rearrange(grad, "... d -> (...) d")
  # A product with eight rows of ones, a full tile: TPUs sum columns several times
  # slower. All rows of the result are equal; indexing one of them meets a bug in XLA's
  # partitioner, so `max` takes it.
  ones = jnp.ones((8, len(rows)), grad.dtype)
  sums = jnp.dot(ones, rows, precision="highest", preferred_element_type=jnp.float32)
  return grad, sums.max(0)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), None), _add_bias_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """Exact GELU, in float32; erf takes a third of the time of erfc on CPU."""
  return (x * _normal_cdf(x)).astype(x.dtype)


def _normal_cdf(x):
  return 0.5 + 0.5 * jax.lax.erf(x.astype(jnp.float32) * 0.5**0.5)


def _gelu_backward(x, grad):
  density = jnp.exp(-0.5 * jnp.square(x.astype(jnp.float32))) * (2 * jnp.pi) ** -0.5
  return ((grad * (_normal_cdf(x) + x * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class Dense(nn.Module):
  """A linear layer of crops of several resolutions: float32 weights, `dtype` products.

  Weights are cast and gathered once for all resolutions, and their gradients are added
  before they are scattered. `parts` splits the output into equal arrays. `biased` are
  equal slices of the output: only those that are True have a bias, and without any
  there is no parameter for it.
  """

  features: int
  dtype: str
  parts: int = 1
  biased: tuple[bool, ...] = (True,)

  @nn.compact
  def __call__(self, xs: Sequence[jax.Array], gamma: jax.Array | float = 1.0):
    """Applies the layer.

    With LayerScale's gamma: (x W + b) gamma = x (W gamma) + b gamma. The gradient of
    gamma then follows from that of the weights, and the unscaled output is neither kept
    nor recomputed.

    Args:
      xs: each [B_i, T_i, H].
      gamma: [features], or 1.

    Returns:
      For each of `xs`, a list of `parts` arrays [B_i, T_i, features / parts].
    """
    kernel = self.param("kernel", _dense_init, (xs[0].shape[-1], self.features))
    bias = jnp.zeros(self.features)
    if any(self.biased):
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
    if not all(self.biased):
      bias *= np.repeat(self.biased, self.features // len(self.biased))
    kernel = sharding.gather((kernel * gamma).astype(self.dtype))
    if sharding.platform() != "gpu":
      return _outputs(xs, kernel, bias * gamma, self.parts)

    # XLA:GPU would scatter the weights' gradient of each resolution by itself. That of
    # a device's own copy is the sum over the resolutions.
    def on_device(xs, kernels, biases):
      return _outputs(xs, kernels[0], biases[0], self.parts)

    copies = sharding.copies(kernel), sharding.copies(bias * gamma)
    return sharding.per_device(on_device)(xs, *copies)


def _outputs(xs, kernel, bias, parts):
  kernels, biases = jnp.split(kernel, parts, axis=1), jnp.split(bias, parts)
  return [
    [add_bias(_product(x, k), b) for k, b in zip(kernels, biases, strict=True)]
    for x in xs
  ]


def _product(x, kernel):
  """[B, T, H], [H, F] -> [B, T, F], in the kernel's type."""
  x = x.astype(kernel.dtype)
  if sharding.platform() != "cpu":
    return x @ kernel
  # On CPU the gradient of a product over three axes copies its operands. On TPU the
  # reshape would copy: rows of a crop are padded to whole tiles.
  return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


class LayerScale(nn.Module):
  """LayerScale (arXiv:2103.17239): gamma, a learned factor per channel of a branch."""

  width: int
  init: float

  @nn.compact
  def __call__(self):
    """Returns gamma, [D] float32."""
    return self.param("gamma", nn.initializers.constant(self.init), (self.width,))
