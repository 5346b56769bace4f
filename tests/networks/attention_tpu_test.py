"""The TPU kernel beside float64, run by Pallas' interpreter, alone and on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax import sharding
from dinojax.networks import attention_tpu

HEADS = 2  # of 64 channels: one program of the kernel


def draw(crops, tokens, dtype):
  rng = np.random.default_rng(0)
  qkv = rng.normal(size=(crops, tokens, 3 * HEADS * 64)) * 1.5
  grad = rng.normal(size=(crops, tokens, HEADS * 64))
  return jnp.asarray(qkv, dtype), jnp.asarray(grad, dtype)


def by_hand(qkv, grad):
  """Attention in float64 and the gradient of sum(out * grad), head by head."""
  qkv, grad = np.float64(qkv), np.float64(grad)
  out, grad_qkv = np.zeros_like(grad), np.zeros_like(qkv)
  width = grad.shape[-1]
  for crop in range(len(qkv)):
    for head in range(HEADS):
      at = [slice(i * width + head * 64, i * width + head * 64 + 64) for i in range(3)]
      q, k, v = (qkv[crop, :, s] for s in at)
      scores = q @ k.T / 8
      p = np.exp(scores - scores.max(1, keepdims=True))
      p /= p.sum(1, keepdims=True)
      g = grad[crop, :, at[0]]
      out[crop, :, at[0]] = p @ v
      grad_p = g @ v.T
      grad_scores = p * (grad_p - (p * grad_p).sum(1, keepdims=True)) / 8
      grads = (grad_scores @ k, grad_scores.T @ q, p.T @ g)
      for s, value in zip(at, grads, strict=True):
        grad_qkv[crop, :, s] = value
  return out, grad_qkv


@jax.jit
def run(qkv, grad):
  attend = functools.partial(attention_tpu.attention, interpret=True)
  out, vjp = jax.vjp(attend, qkv)
  return out, vjp(grad)[0]


@pytest.mark.parametrize(
  "crops, tokens, dtype, tolerance",
  [
    (1, 257, "float32", 1e-5),
    (7, 5, "float32", 1e-5),
    (6, 50, "bfloat16", 1e-2),
    (2, 64, "bfloat16", 1e-2),
  ],
)
def test_output_and_gradient_equal_float64(crops, tokens, dtype, tolerance):
  qkv, grad = draw(crops, tokens, dtype)
  for found, wanted in zip(run(qkv, grad), by_hand(qkv, grad), strict=True):
    assert found.dtype == dtype
    error = np.abs(np.float64(found) - wanted).max()
    assert error <= tolerance * np.abs(wanted).max()


def test_eight_devices_attend_as_float64_does():
  qkv, grad = draw(8, 10, "float32")
  mesh = sharding.make_mesh(data=2, fsdp=4)
  with jax.set_mesh(mesh):
    placed = jax.device_put((qkv, grad), sharding.batch_sharding(mesh))
    found = run(*placed)
  assert found[0].sharding.is_equivalent_to(sharding.batch_sharding(mesh), 3)
  for a, b in zip(found, by_hand(qkv, grad), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "shape, heads, fits",
  [
    ((2, 257, 3 * 1536), 24, True),
    ((2, 257, 3 * 1536), 12, False),  # heads of 128 channels
    ((2, 257, 3 * 192), 3, False),  # an odd number of heads
    ((2, 1370, 3 * 1536), 24, False),  # scores too large for the chip's memory
  ],
)
def test_what_the_kernel_can_do_is_known_before(shape, heads, fits):
  assert attention_tpu.fits(jax.ShapeDtypeStruct(shape, "bfloat16"), heads) == fits
