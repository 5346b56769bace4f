"""Every kind of attention beside XLA's own, and who is chosen where."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax import config_fields, sharding
from dinojax.networks import attention, blocks
from dinojax.planning import topology


def run(kind, dtype, tokens=50):
  """Output and gradient of two heads of 64 channels."""
  rng = np.random.default_rng(0)
  qkv = jnp.asarray(rng.normal(size=(4, tokens, 3 * 128)), dtype)
  grad = jnp.asarray(rng.normal(size=(4, tokens, 128)), dtype)

  @jax.jit
  def both(qkv):
    out, vjp = jax.vjp(lambda x: attention.attention(x, heads=2, kind=kind), qkv)
    return out, vjp(grad)[0]

  return [np.float64(x) for x in both(qkv)]


def kinds_of_this_machine():
  platform = jax.default_backend()
  own = {"cpu": [], "gpu": ["cudnn"], "tpu": ["pallas"]}[platform]
  return ["cpu", *own]


@pytest.mark.parametrize("kind", kinds_of_this_machine())
@pytest.mark.parametrize(
  "dtype, tolerance, tokens", [("float32", 1e-5, 50), ("bfloat16", 1e-2, 257)]
)
def test_every_kernel_equals_xlas_own_forward_and_backward(
  kind, dtype, tolerance, tokens
):
  if kind == "cudnn" and dtype == "float32":
    pytest.skip("cuDNN attends in half precision alone")
  # In bfloat16 XLA's own rounds its probabilities: float32 is the measure.
  wanted = run("xla", "float32", tokens)
  for found, value in zip(run(kind, dtype, tokens), wanted, strict=True):
    assert np.abs(found - value).max() <= tolerance * np.abs(value).max()


def test_a_cpu_takes_its_own_kernel():
  if jax.default_backend() == "cpu":
    qkv = jax.ShapeDtypeStruct((4, 50, 3 * 128), "float32")
    attend = functools.partial(attention.attention, heads=2)
    auto, cpu, xla = (
      jax.jit(functools.partial(attend, kind=kind)).lower(qkv).as_text()
      for kind in ("auto", "cpu", "xla")
    )
    assert auto == cpu != xla


@pytest.mark.parametrize("heads, fits", [(2, True), (1, False)])  # 64 channels, or 128
def test_a_tpu_takes_the_pallas_kernel_where_it_fits(heads, fits):
  devices = topology.devices("v5e:2x2")
  mesh = sharding.make_mesh(data=2, fsdp=2, devices=devices)
  where = sharding.batch_sharding(mesh)
  qkv = jax.ShapeDtypeStruct((4, 5, 3 * 128), "bfloat16", sharding=where)
  with jax.set_mesh(mesh):
    attend = functools.partial(attention.attention, heads=heads, kind="auto")
    program = jax.jit(attend).lower(qkv).as_text()
  assert ("tpu_custom_call" in program) == fits


def test_preflight_knows_every_kind_and_every_policy():
  assert config_fields.CHOICES["config.attention"] == attention.KINDS
  assert config_fields.CHOICES["config.remat"] == tuple(blocks.REMAT)
  assert config_fields.CHOICES["config.backbone.qkv_bias"] == tuple(blocks.BIASED)
