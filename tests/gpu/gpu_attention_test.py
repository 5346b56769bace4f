"""The platform's attention beside the plain path, at every shape that is trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax import sharding
from dinojax.networks import attention

HEADS = 2


@functools.partial(jax.jit, static_argnames="kind")
def run(qkv, grad, kind):
  out, vjp = jax.vjp(
    functools.partial(attention.attention, heads=HEADS, kind=kind), qkv
  )
  return out, vjp(grad)[0]


@pytest.mark.parametrize("tokens, width", [(50, 64), (257, 64), (201, 128), (261, 128)])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_output_and_gradient_are_those_of_the_plain_path(
  device, cpu, tokens, width, dtype, tolerance
):
  rng = np.random.default_rng(0)
  qkv = jnp.asarray(rng.normal(size=(4, tokens, 3 * HEADS * width)), dtype)
  grad = jnp.asarray(rng.normal(size=(4, tokens, HEADS * width)), dtype)
  results = []
  # In float32 a GPU would round the factors of its products to 10 bits.
  with jax.default_matmul_precision("highest"):
    for where, kind in ((device, "auto"), (cpu, "xla")):
      with jax.set_mesh(sharding.make_mesh(data=1, fsdp=1, devices=[where])):
        results.append(run(*jax.device_put((qkv, grad), where), kind))
  for found, wanted in zip(*results, strict=True):
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    found, wanted = np.float64(found), np.float64(wanted)
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_a_gpu_runs_its_own_kernel(device, platform):
  if platform != "gpu":
    pytest.skip("of --platform=gpu")
  qkv, grad = (
    jnp.ones((2, 257, 384), jnp.bfloat16),
    jnp.ones((2, 257, 128), jnp.bfloat16),
  )
  with jax.set_mesh(sharding.make_mesh(data=1, fsdp=1, devices=[device])):
    text = run.lower(qkv, grad, "auto").compile().as_text()
  assert "__cudnn$fmhaSoftmaxBackward" in text
