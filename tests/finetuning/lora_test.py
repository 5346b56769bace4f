"""LoRA starts as the unchanged network, and merges into plain weights."""

import jax
import numpy as np
import small

from dinojax.finetuning import lora


def adapters(params, *, seed=None):
  """Of rank 2; with a seed B is noise, as after training."""
  made = lora.first_adapters(params, rank=2, key=jax.random.key(1))
  if seed is None:
    return made
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: 0.1 * rng.normal(size=x.shape).astype(x.dtype), made)


def test_adapters_start_as_the_unchanged_network():
  params = small.params()
  merged = lora.merge(params, adapters(params), scale=2.0)
  jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_a_starts_with_the_deviation_of_its_inputs_and_differs_by_layer():
  a = adapters(small.params())["blocks"]["attn"]["qkv"]["a"]
  assert a.shape == (2, 16, 2)
  assert 0.15 < float(a.std()) < 0.35  # 1 / sqrt(16)
  assert abs(a[0] - a[1]).min() > 0


def test_merged_kernels_are_the_sum_in_float64_and_all_else_is_as_it_was():
  params = small.params()
  added = adapters(params, seed=3)
  merged = lora.merge(params, added, scale=2.0)
  for name in ("qkv", "proj"):
    pair = added["blocks"]["attn"][name]
    own = params["blocks"]["attn"][name]["kernel"]
    wanted = own + 2.0 * np.float64(pair["a"]) @ np.float64(pair["b"])
    found = merged["blocks"]["attn"][name]["kernel"]
    np.testing.assert_allclose(found, wanted, 1e-6, 1e-6)
    assert abs(found - own).max() > 1e-2
    merged["blocks"]["attn"][name]["kernel"] = own
  jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_the_merged_network_computes_what_two_separate_paths_would():
  params = small.params()
  added = adapters(params, seed=4)
  merged = lora.merge(params, added, scale=2.0)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, 16)).astype(np.float32)
  kernel = params["blocks"]["attn"]["qkv"]["kernel"][0]
  pair = jax.tree.map(lambda x: x[0], added["blocks"]["attn"]["qkv"])
  apart = x @ kernel + 2.0 * (x @ pair["a"]) @ pair["b"]
  together = x @ merged["blocks"]["attn"]["qkv"]["kernel"][0]
  np.testing.assert_allclose(together, apart, 1e-5, 1e-5)
