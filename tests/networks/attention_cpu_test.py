"""Attention on CPU beside float64 NumPy, alone and under transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax import sharding
from dinojax.networks import attention_cpu

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


def cpu(q, k, v):
  """The kernel, of queries, keys and values that stand apart."""
  packed = jnp.concatenate([x.reshape(*x.shape[:2], -1) for x in (q, k, v)], -1)
  return attention_cpu.attention(packed, heads=q.shape[2]).reshape(q.shape)


def normal(*shape, dtype="float32", scale=1.0):
  """Queries, keys, values and the gradient of the output, already rounded to dtype."""
  rng = np.random.default_rng(0)
  return [jnp.asarray(scale * rng.normal(size=shape), dtype) for _ in range(4)]


def oracle(q, k, v, grad):
  """Output and gradients, one image and head at a time."""
  q, k, v, grad = (np.asarray(x, np.float64) for x in (q, k, v, grad))
  out, d_q, d_k, d_v = (np.zeros_like(q) for _ in range(4))
  root = np.sqrt(q.shape[-1])
  for b in range(q.shape[0]):
    for h in range(q.shape[2]):
      at = (b, slice(None), h)
      scores = q[at] @ k[at].T / root
      p = np.exp(scores - scores.max(-1, keepdims=True))
      p /= p.sum(-1, keepdims=True)
      out[at] = p @ v[at]
      d_v[at] = p.T @ grad[at]
      d_p = grad[at] @ v[at].T
      # Jacobian of a softmax row: diag(p) - p p^T.
      d_scores = p * d_p - p * (p * d_p).sum(-1, keepdims=True)
      d_q[at] = d_scores @ k[at] / root
      d_k[at] = d_scores.T @ q[at] / root
  return out, d_q, d_k, d_v


def pulled(kernel, q, k, v, grad):
  out, pull = jax.vjp(kernel, q, k, v)
  return out, *pull(grad)


def compiled(*arrays):
  """`pulled` of our kernel, traced anew: a test may have changed STEP_BYTES."""
  return jax.jit(lambda *a: pulled(cpu, *a))(*arrays)


def assert_near(got, wanted, tolerance):
  for x, y in zip(got, wanted, strict=True):
    np.testing.assert_allclose(
      np.asarray(x, np.float64), y, rtol=tolerance, atol=tolerance * np.abs(y).max()
    )


@pytest.mark.parametrize(
  "shape, dtype",
  [
    ((2, 257, 3, 64), "float32"),
    ((4, 50, 6, 64), "bfloat16"),
    ((3, 5, 2, 8), "float32"),
  ],
)
def test_output_and_gradients_are_those_of_the_formula(shape, dtype):
  arrays = normal(*shape, dtype=dtype)
  got = compiled(*arrays)
  assert all(x.dtype == dtype and x.shape == shape for x in got)
  assert_near(got, oracle(*arrays), TOLERANCE[dtype])


@pytest.mark.parametrize("limit", [1, 4 * 2 * 9 * 5])
def test_the_size_of_a_step_changes_nothing(monkeypatch, limit):
  monkeypatch.setattr(attention_cpu, "STEP_BYTES", limit)
  arrays = normal(6, 3, 2, 8)
  assert_near(compiled(*arrays), oracle(*arrays), 1e-5)


def test_a_step_holds_no_more_probabilities_than_its_limit():
  q, k, v, grad = normal(64, 50, 6, 64)
  jaxpr = str(jax.make_jaxpr(lambda *a: pulled(cpu, *a))(q, k, v, grad))
  assert "f32[96,50,50]" in jaxpr  # 16 images of 6 heads: 0.92 MiB
  assert "f32[384,50,50]" not in jaxpr


def test_large_scores_neither_overflow_nor_underflow():
  arrays = normal(2, 7, 2, 16, scale=40.0)
  got = compiled(*arrays)
  assert all(np.isfinite(x).all() for x in got)
  wanted = oracle(*arrays)
  # Of a saturated softmax, the gradients of q and k are differences of equal numbers.
  assert_near((got[0], got[3]), (wanted[0], wanted[3]), 1e-3)


def test_packed_reads_queries_keys_values_side_by_side():
  q, k, v, grad = normal(3, 5, 2, 8)
  flat = [np.asarray(x).reshape(3, 5, 16) for x in (q, k, v, grad)]
  qkv = np.concatenate(flat[:3], -1)

  @jax.jit
  def attend(qkv, grad):
    return pulled_one(lambda x: attention_cpu.attention(x, heads=2), qkv, grad)

  out_wanted, *grads_wanted = (x.reshape(3, 5, 16) for x in oracle(q, k, v, grad))
  wanted = out_wanted, np.concatenate(grads_wanted, -1)
  assert_near(attend(qkv, flat[3]), wanted, 1e-5)


def test_it_maps_over_a_further_axis(monkeypatch):
  monkeypatch.setattr(attention_cpu, "STEP_BYTES", 1)
  arrays = normal(3, 4, 5, 2, 8)
  got = jax.jit(jax.vmap(lambda *a: pulled(cpu, *a)))(*arrays)
  wanted = [oracle(*slices) for slices in zip(*arrays, strict=True)]
  assert_near(got, map(np.stack, zip(*wanted, strict=True)), 1e-5)


def test_a_rematted_scan_over_layers_has_the_gradient_of_the_layers_unrolled(
  monkeypatch,
):
  monkeypatch.setattr(attention_cpu, "STEP_BYTES", 1)
  x, _, _, grad = normal(4, 5, 2, 8)
  weights = np.float32([0.5, 1.5, -1.0])

  def layer(x, weight, kernel=cpu):
    return x + weight * kernel(x, weight * x, x)

  def scanned(x):
    body = jax.checkpoint(layer)
    return jax.lax.scan(lambda x, weight: (body(x, weight), None), x, weights)[0]

  def unrolled(x):
    for weight in weights:
      x = layer(x, weight, jax.nn.dot_product_attention)
    return x

  got, wanted = (
    jax.jit(lambda x, f=f: pulled_one(f, x, grad))(x) for f in (scanned, unrolled)
  )
  assert_near(got, np.asarray(wanted, np.float64), 2e-5)


def pulled_one(f, x, grad):
  out, pull = jax.vjp(f, x)
  return out, pull(grad)[0]


def test_eight_devices_agree_with_the_formula_and_gather_nothing(monkeypatch):
  monkeypatch.setattr(attention_cpu, "STEP_BYTES", 1)
  mesh = sharding.make_mesh(data=2, fsdp=4)
  arrays = normal(24, 5, 2, 8)
  placed = jax.device_put(arrays, sharding.batch_sharding(mesh))
  with jax.set_mesh(mesh):
    step = jax.jit(lambda *a: pulled(cpu, *a)).lower(*placed).compile()
    got = step(*placed)
  assert "all-gather" not in step.as_text()
  assert all(x.sharding.is_equivalent_to(placed[0].sharding, 4) for x in got)
  assert_near(got, oracle(*arrays), 1e-5)


def test_a_batch_that_the_mesh_cannot_divide_is_right_all_the_same():
  arrays = normal(3, 5, 2, 8)
  with jax.set_mesh(sharding.make_mesh(data=2, fsdp=4)):
    got = compiled(*arrays)
  assert_near(got, oracle(*arrays), 1e-5)
