"""The backbone: resolutions, drop path, pooling, precision, sizes, first weights."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.networks import blocks, vit

TINY = dict(
  patch_size=14,
  pos_grid=4,
  width=32,
  depth=2,
  heads=4,
  ffn="swiglu",
  registers=0,
  pool="gap",
  drop_path=0.0,
  layerscale_init=1.0,  # blocks show from the first step on
  dtype="float32",
  remat="none",
  unroll=1,
  attention="xla",
)
IMAGE = (np.zeros((1, 56, 56, 3)),)
# At 518 pixels; parameters as published (g) or counted by hand.
SIZES = {
  "S": (dict(width=384, depth=12, heads=6, ffn="mlp"), 22_056_576),
  "B": (dict(width=768, depth=12, heads=12, ffn="mlp"), 86_580_480),
  "L": (dict(width=1024, depth=24, heads=16, ffn="mlp"), 304_368_640),
  "g": (dict(width=1536, depth=40, heads=24, ffn="swiglu"), 1_136_480_768),
}


def make(**changes):
  return vit.VisionTransformer(**{**TINY, **changes})


@functools.cache
def trained_like_params():
  """Parameters far from their first values, zeros and ones included."""
  shapes = jax.eval_shape(make().init, jax.random.key(0), IMAGE, (None,))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: rng.normal(size=s.shape, scale=0.3).astype(np.float32), shapes
  )


def images(count, side=56, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(count, side, side, 3)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, crops, masks):
  return model.apply(params, crops, masks)


def run(model, crops, masks=None, params=None):
  """Features in NumPy; masks that hide nothing share the program of those that do."""
  masks = masks or [np.zeros((len(x), (x.shape[1] // 14) ** 2), bool) for x in crops]
  return jax.device_get(apply(model, params or trained_like_params(), crops, masks))


def test_one_call_on_two_resolutions_equals_two_calls():
  model, large, small = make(), images(3), images(5, side=28, seed=1)
  mask = np.random.default_rng(2).random((3, 16)) < 0.5
  together = run(model, (large, small), (mask, np.zeros((5, 4), bool)))
  apart = run(model, (large,), (mask,)) + run(model, (small,))
  for one, other in zip(together, apart, strict=True):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), one, other
    )


def test_gap_is_the_mean_of_all_patches_after_the_norm_masked_ones_too():
  mask = np.random.default_rng(2).random((3, 16)) < 0.5
  (features,) = run(make(pool="gap"), (images(3),), (mask,))
  by_hand = np.asarray(features.patches, np.float64).mean(1)
  np.testing.assert_allclose(features.image, by_hand, rtol=1e-5, atol=1e-6)
  # The last thing done to a token is the norm's scale and bias.
  norm = trained_like_params()["params"]["norm"]
  before = (np.asarray(features.patches) - norm["bias"]) / norm["scale"]
  np.testing.assert_allclose(before.mean(-1), 0, atol=1e-4)
  np.testing.assert_allclose(before.std(-1), 1, atol=1e-3)


def test_a_masked_patch_is_hidden_from_every_token():
  mask = np.zeros((3, 16), bool)
  mask[0, 5] = True
  changed = images(3)
  changed[:, 14:28, 14:28] += 1  # patch 5, in row 1 and column 1
  (before,) = run(make(), (images(3),), (mask,))
  (after,) = run(make(), (changed,), (mask,))
  np.testing.assert_array_equal(before.patches[0], after.patches[0])
  assert np.abs(before.cls[1] - after.cls[1]).max() > 1e-3


def test_every_branch_of_every_block_draws_its_own_subset():
  # Equal crops end alike where they went through the same branches. Were the draws of a
  # block's two branches the same, or those of both blocks, there would be 4 kinds.
  same = np.repeat(images(1), 32, axis=0)
  apply = jax.jit(functools.partial(make(drop_path=0.5).apply, train=True))
  rngs = {"drop_path": jax.random.key(0)}
  (features,) = apply(trained_like_params(), (same,), (None,), rngs=rngs)
  kinds = np.unique(np.round(features.image, 4), axis=0)
  assert 4 < len(kinds) <= 4**2


def test_drop_path_is_off_outside_training():
  wanted = run(make(drop_path=0.0), (images(3),))
  found = run(make(drop_path=0.4), (images(3),))  # needs no key either
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_activation_checkpointing_leaves_gradients_as_they_are():
  params = trained_like_params()["params"]

  def gradients(remat):
    model = make(remat=remat, drop_path=0.4)

    def loss(blocks):  # what else has a gradient is not recomputed
      (features,) = model.apply(
        {"params": params | {"blocks": blocks}},
        (images(5),),
        (None,),
        train=True,
        rngs={"drop_path": jax.random.key(3)},
      )
      return jnp.square(features.patches).sum() + features.cls.sum()

    return jax.jit(jax.grad(loss))(params["blocks"])

  # The other policies keep more of what "full" recomputes.
  assert blocks.REMAT["full"] == ()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-5 * np.abs(b).max()),
    *(gradients("full"), gradients("none")),
  )


def test_bfloat16_stays_near_float32_and_returns_float32():
  (wanted,) = run(make(), (images(3),))
  (found,) = run(make(dtype="bfloat16"), (images(3),))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(a - b) / np.linalg.norm(b) < 2e-2


@pytest.mark.parametrize("dtype, short", [("float32", "f32"), ("bfloat16", "bf16")])
def test_every_matrix_product_runs_in_the_dtype_of_the_config(dtype, short):
  apply = jax.jit(make(dtype=dtype).apply)
  program = apply.lower(trained_like_params(), (images(2),), (None,)).as_text()
  products = [line for line in program.splitlines() if "dot_general" in line]
  assert len(products) == 8  # patches, qkv, two of attention, proj, three of the FFN
  for product in products:
    operands = re.search(r": \((tensor<.*>), (tensor<.*>)\) ->", product).groups()
    assert all(operand.endswith(f"x{short}>") for operand in operands), product


def test_bfloat16_does_not_round_away_a_small_layerscale():
  # A step of 1e-5 vanishes beside 1 in bfloat16, whose spacing there is 0.008.
  def patches(gamma):
    params = jax.tree_util.tree_map_with_path(
      lambda path, x: np.full_like(x, gamma) if path[-1].key == "gamma" else x,
      trained_like_params(),
    )
    (features,) = run(make(dtype="bfloat16"), (images(3),), params=params)
    return features.patches

  assert (patches(1e-5) != patches(0)).mean() > 0.5


def by_hand(pixels, mean, deviation):
  return [(p / 255 - m) / s for p, m, s in zip(pixels, mean, deviation, strict=True)]


def test_normalize_takes_uint8_to_imagenet_units():
  pixels = jnp.uint8([[[0, 128, 255]]])
  wanted = by_hand((0, 128, 255), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
  np.testing.assert_allclose(vit.normalize(pixels)[0, 0], wanted, 1e-6)
  with pytest.raises(AssertionError):
    make().normalize(jnp.ones((1, 1, 3), jnp.float32))


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_its_number_of_parameters(size):
  fields, parameters = SIZES[size]
  for registers in (0, 4) if size == "g" else (0,):
    model = make(**fields, pos_grid=37, registers=registers)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGE, (None,))
    found = sum(math.prod(s.shape) for s in jax.tree.leaves(shapes))
    assert found == parameters + registers * fields["width"]
    assert all(s.dtype == jnp.float32 for s in jax.tree.leaves(shapes))


def test_initial_weights_have_the_spread_of_the_reference():
  model = make(width=128, registers=4, layerscale_init=1e-5, ffn="mlp")
  params = jax.jit(model.init)(jax.random.key(0), IMAGE, (None,))["params"]
  params = jax.device_get(params)
  stacked = params["blocks"]
  for layer in (stacked["attn"]["qkv"], stacked["attn"]["proj"], stacked["mlp"]["fc1"]):
    np.testing.assert_allclose(layer["kernel"].std((1, 2)), 0.02, rtol=0.05)
    np.testing.assert_array_equal(layer["bias"], 0)
  np.testing.assert_allclose(stacked["mlp"]["fc2"]["kernel"].std(), 0.02, rtol=0.05)
  np.testing.assert_allclose(params["pos_embed"].std(), 0.02, rtol=0.1)
  for name in ("cls_token", "register_tokens"):
    np.testing.assert_allclose(params[name].std(), 1e-6, rtol=0.2)
  np.testing.assert_array_equal(params["mask_token"], 0)
  bound = 1 / math.sqrt(588)
  for part in params["patch_embed"].values():
    assert bound * 0.95 < np.abs(part).max() <= bound
    np.testing.assert_allclose(part.std(), bound / math.sqrt(3), rtol=0.1)
  for name in ("norm1", "norm2"):
    np.testing.assert_array_equal(stacked[name]["scale"], 1)
    np.testing.assert_array_equal(stacked[name]["bias"], 0)
  for name in ("ls1", "ls2"):
    np.testing.assert_array_equal(stacked[name]["gamma"], np.float32(1e-5))
  # Each block has weights of its own.
  kernel = stacked["attn"]["qkv"]["kernel"]
  assert np.abs(kernel[0] - kernel[1]).max() > 0.01
