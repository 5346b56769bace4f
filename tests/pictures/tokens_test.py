"""Tokens are those of the backbone, and attention that of its last block."""

import dataclasses

import jax
import numpy as np
import pytest

from dinojax import backbone, sharding
from dinojax.pictures import tokens
from dinojax.weights import model

ARCHITECTURE = model.DEFAULTS | dict(
  patch_size=4, pos_grid=4, width=16, depth=2, heads=2, ffn="mlp", registers=2
)
entering_last = jax.jit(tokens.entering_last, static_argnums=0)


def make(pool, **changes):
  """A backbone of noise."""
  architecture = {**ARCHITECTURE, "pool": pool, **changes}
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.3).astype(np.float32),
    model.shapes(architecture),
  )
  return backbone.of_weights(model.Weights(architecture, {"backbone": params}))


def pictures(count, side=24):
  rng = np.random.default_rng(1)
  return rng.integers(256, size=(count, side, side, 3), dtype=np.uint8)


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def attention_by_hand(loaded, images, pool):
  """The last block's attention in float64, from the tokens of the blocks before."""
  params = jax.tree.map(np.asarray, loaded.params)
  entering = np.float64(entering_last(loaded.module, loaded.params, images))
  block = jax.tree.map(lambda x: np.float64(x[-1]), params["blocks"])
  mean, deviation = entering.mean(-1, keepdims=True), entering.var(-1, keepdims=True)
  x = (entering - mean) / np.sqrt(deviation + 1e-6)
  x = x * block["norm1"]["scale"] + block["norm1"]["bias"]
  qkv = x @ block["attn"]["qkv"]["kernel"] + block["attn"]["qkv"]["bias"]
  b, t, _ = qkv.shape
  q, k, _ = qkv.reshape(b, t, 3, loaded.module.heads, -1).transpose(2, 0, 3, 1, 4)
  weights = softmax(q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1]))
  first = 1 + loaded.module.registers
  rows = weights[:, :, :1] if pool == "cls" else weights[:, :, first:]
  return rows.mean(2)[..., first:]


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_attention_is_that_of_the_image_features_query(pool):
  loaded, images = make(pool), pictures(2)
  found = tokens.compute(loaded.module, loaded.params, images)
  expected = attention_by_hand(loaded, images, pool)
  assert found.attention.shape == (2, 2, 36)
  np.testing.assert_allclose(found.attention, expected, rtol=2e-4, atol=1e-7)
  assert (found.attention.sum(-1) < 1).all()  # CLS and registers take their part
  if pool == "gap":
    seen = loaded(images)
    np.testing.assert_allclose(found.patches, seen.patches, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.image, seen.image, rtol=1e-5, atol=1e-5)


def test_the_tokens_that_enter_the_last_block_become_the_features():
  loaded, images = make("cls"), pictures(2)
  shallow = loaded.module.clone(depth=1)
  blocks = jax.tree.map(lambda x: x[:1], loaded.params["blocks"])
  before = dataclasses.replace(
    loaded, module=shallow, params={**loaded.params, "blocks": blocks}
  )
  entering = np.float64(entering_last(loaded.module, loaded.params, images))
  norm = loaded.params["norm"]
  mean, variance = entering.mean(-1, keepdims=True), entering.var(-1, keepdims=True)
  normed = (entering - mean) / np.sqrt(variance + 1e-6) * norm["scale"] + norm["bias"]
  np.testing.assert_allclose(normed[:, 0], before(images).cls, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    normed[:, 3:], before(images).patches, rtol=1e-4, atol=1e-4
  )


def test_a_backbone_of_one_block_has_attention_too():
  loaded, images = make("gap", depth=1, registers=0), pictures(1)
  found = tokens.compute(loaded.module, loaded.params, images)
  expected = attention_by_hand(loaded, images, "gap")
  np.testing.assert_allclose(found.attention, expected, rtol=2e-4, atol=1e-7)


def test_eight_devices_compute_what_one_does():
  loaded, images = make("gap"), pictures(8)
  alone = tokens.compute(loaded.module, loaded.params, images)
  mesh = sharding.make_mesh(data=2, fsdp=4)
  params = jax.device_put(loaded.params, sharding.state_sharding(mesh, loaded.params))
  with jax.set_mesh(mesh):
    together = tokens.compute(loaded.module, params, images)
    assert all(x.is_fully_replicated for x in jax.tree.leaves(together))
  for name in ("image", "patches", "attention"):
    a, b = getattr(alone, name), getattr(together, name)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("patch", "crop", "expected"),
  [(14, 224, 32), (14, 518, 37), (4, 16, 16), (4, 32, 16), (14, 98, 16), (14, 168, 24)],
)
def test_pictures_have_more_patches_than_training(patch, crop, expected):
  architecture = {**ARCHITECTURE, "pool": "cls", "patch_size": patch}
  module = model.module(architecture, dtype="float32", attention="xla")
  assert tokens.grid(module, crop) == expected
