"""Layers of a block beside the formulas that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax import sharding
from dinojax.networks import layers


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_layerscale_in_the_weights_scales_a_linear_layer_with_all_its_gradients(
  dtype, tolerance
):
  rng = np.random.default_rng(0)
  x, grad = rng.normal(size=(3, 5, 24)), rng.normal(size=(3, 5, 16))
  kernel, bias, gamma = (rng.normal(size=s) for s in ((24, 16), (16,), (16,)))
  layer = layers.Dense(16, dtype)

  def apply(kernel, bias, gamma, x):
    ((out,),) = layer.apply({"params": {"kernel": kernel, "bias": bias}}, [x], gamma)
    return out

  args = [np.float32(a) for a in (kernel, bias, gamma, x)]

  @jax.jit
  def run(grad, *args):
    found, vjp = jax.vjp(apply, *args)
    return [found, *vjp(grad)]

  scaled, rows, grads = grad * gamma, x.reshape(-1, 24), grad.reshape(-1, 16)
  wanted = [
    (x @ kernel + bias) * gamma,
    rows.T @ scaled.reshape(-1, 16),
    scaled.sum((0, 1)),
    (grads * (rows @ kernel + bias)).sum(0),
    scaled @ kernel.T,
  ]
  for a, b in zip(run(jnp.asarray(grad, dtype), *args), wanted, strict=True):
    np.testing.assert_allclose(np.float64(a), b, atol=tolerance * np.abs(b).max())


def test_the_gradient_of_a_bias_is_summed_in_float32():
  x, bias = jnp.zeros((4096, 3), jnp.bfloat16), jnp.zeros(3)
  _, vjp = jax.vjp(layers.add_bias, x, bias)
  grad = jnp.broadcast_to(1 + jnp.arange(3) / 128, (4096, 3)).astype(jnp.bfloat16)
  _, found = vjp(grad)
  assert found.dtype == jnp.float32  # where bfloat16 would stop at 256
  np.testing.assert_array_equal(found, 4096 * (1 + np.arange(3) / 128))


def test_on_gpus_a_layer_of_two_resolutions_equals_the_plain_one(monkeypatch):
  rng = np.random.default_rng(0)
  xs, grads = (
    [np.float32(rng.normal(size=(8, tokens, width))) for tokens in (5, 3)]
    for width in (24, 16)
  )
  layer = layers.Dense(16, "float32", parts=2)
  params = {"kernel": rng.normal(size=(24, 16)), "bias": rng.normal(size=16)}
  args = jax.tree.map(np.float32, (params, rng.normal(size=16)))

  def run(args, xs):
    def apply(args, xs):
      outputs = layer.apply({"params": args[0]}, xs, args[1])
      return [jnp.concatenate(parts, -1) for parts in outputs]

    outputs, vjp = jax.vjp(apply, args, xs)
    return outputs, vjp(grads)

  wanted = jax.jit(run)(args, xs)
  monkeypatch.setattr(sharding, "platform", lambda: "gpu")
  alone = jax.jit(lambda *args: run(*args))(args, xs)
  with jax.set_mesh(sharding.make_mesh(data=2, fsdp=4)):
    together = jax.jit(lambda *args: run(*args))(args, xs)
  for found in (alone, together):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
