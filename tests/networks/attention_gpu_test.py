"""Padding for cuDNN's kernel beside the plain path, and where the kernel can run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax import errors, sharding
from dinojax.networks import attention, attention_gpu

# The wrapper of cuDNN's kernel around operations that run anywhere.
padded = functools.partial(attention_gpu.attention, heads=2, implementation="xla")
plain = functools.partial(attention.attention, heads=2, kind="xla")


def draw(crops, tokens, width, dtype):
  """Queries, keys and values of two heads, and the gradient of their attention."""
  rng = np.random.default_rng(0)
  qkv = rng.normal(size=(crops, tokens, 3 * 2 * width))
  grad = rng.normal(size=(crops, tokens, 2 * width))
  return jnp.asarray(qkv, dtype), jnp.asarray(grad, dtype)


@functools.partial(jax.jit, static_argnums=0)
def run(attend, qkv, grad):
  out, vjp = jax.vjp(attend, qkv)
  return out, vjp(grad)[0]


@pytest.mark.parametrize(
  "tokens, width, dtype, tolerance",
  [
    (257, 64, "float32", 1e-5),
    (50, 128, "float32", 1e-5),
    (201, 128, "bfloat16", 1e-2),
    (51, 64, "bfloat16", 1e-2),
  ],
)
def test_a_token_more_changes_neither_output_nor_gradient(
  tokens, width, dtype, tolerance
):
  qkv, grad = draw(2, tokens, width, dtype)
  found, wanted = run(padded, qkv, grad), run(plain, qkv, grad)
  for a, b in zip(found, wanted, strict=True):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    a, b = np.float64(a), np.float64(b)
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def test_eight_devices_attend_as_one_does():
  qkv, grad = draw(8, 5, 8, "float32")
  wanted = run(padded, qkv, grad)
  mesh = sharding.make_mesh(data=2, fsdp=4)
  with jax.set_mesh(mesh):
    placed = jax.device_put((qkv, grad), sharding.batch_sharding(mesh))
    found = run(padded, *placed)
  assert found[0].sharding.is_equivalent_to(sharding.batch_sharding(mesh), 3)
  for a, b in zip(found, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "kind",
  [
    *(
      "NVIDIA H100 80GB HBM3",
      "NVIDIA H200",
      "NVIDIA B200",
      "NVIDIA L4",
      "NVIDIA L40S",
    ),
    *("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA A10G", "NVIDIA RTX A6000"),
    *(
      "NVIDIA GeForce RTX 3090",
      "NVIDIA RTX 2000 Ada Generation",
      "NVIDIA GH200 480GB",
    ),
  ],
)
def test_cards_from_ampere_on_run_cudnns_kernel(kind):
  qkv = jax.ShapeDtypeStruct((2, 257, 3 * 128), "bfloat16")
  assert attention_gpu.obstacle(qkv, 2, kind) is None


@pytest.mark.parametrize(
  "kind",
  [
    *("Tesla V100-SXM2-16GB", "NVIDIA Tesla V100", "Tesla T4", "NVIDIA T4G"),
    *("NVIDIA GeForce RTX 2080 Ti", "NVIDIA GeForce GTX 1080", "Quadro RTX 6000"),
    *("NVIDIA TITAN RTX", "NVIDIA T1000", "AMD Instinct MI300X", "gfx942"),
  ],
)
def test_older_cards_and_amds_do_not(kind):
  qkv = jax.ShapeDtypeStruct((2, 257, 3 * 128), "bfloat16")
  assert attention_gpu.obstacle(qkv, 2, kind).endswith(f"and this is {kind}")


@pytest.mark.parametrize(
  "heads, dtype, words",
  [
    (2, "float32", "computes in bfloat16, and this is float32"),
    (1, "bfloat16", "at most 128 channels, a multiple of 8, and these have 256"),
    (64, "bfloat16", "at most 128 channels, a multiple of 8, and these have 4"),
  ],
)
def test_other_types_and_widths_of_heads_do_not(heads, dtype, words):
  qkv = jax.ShapeDtypeStruct((2, 257, 3 * 256), dtype)
  assert words in attention_gpu.obstacle(qkv, heads, "NVIDIA H100 80GB HBM3")


@pytest.fixture
def gpu(monkeypatch):
  """This process takes its devices for a V100."""
  monkeypatch.setattr(sharding, "platform", lambda: "gpu")
  monkeypatch.setattr(sharding, "device_kind", lambda: "Tesla V100-SXM2-16GB")
  attention._report.cache_clear()


def test_a_card_without_the_kernel_attends_by_the_plain_path_and_says_so_once(
  gpu, capsys
):
  qkv, grad = draw(2, 5, 8, "float32")
  attend = functools.partial(attention.attention, heads=2, kind="auto")
  for a, b in zip(run(attend, qkv, grad), run(plain, qkv, grad), strict=True):
    np.testing.assert_array_equal(a, b)
  run(attend, qkv[:1], grad[:1])  # traced once more
  output = capsys.readouterr()
  assert output.out == ""
  assert output.err == (
    "attention runs XLA's own operations, which are slower: cuDNN's kernel needs an"
    " NVIDIA card of the Ampere generation or newer, and this is Tesla V100-SXM2-16GB\n"
  )


def test_asked_for_by_name_the_kernel_is_refused_where_it_cannot_run(gpu):
  qkv, _ = draw(2, 5, 8, "float32")
  with pytest.raises(errors.UserError, match=r"config\.attention=cudnn cannot run \("):
    attention.attention(qkv, heads=2, kind="cudnn")
