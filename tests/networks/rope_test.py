"""RoPE: angles, what they leave alone, invariance of scores, random places."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.networks import rope

HEADS, WIDTH, BATCH = 2, 8, 3  # WIDTH: d
PREFIX = 3  # CLS and registers


def packed(patches, seed=0):
  rng = np.random.default_rng(seed)
  shape = (BATCH, PREFIX + patches, 3 * HEADS * WIDTH)
  return rng.normal(size=shape).astype(np.float32)


def by_hand(qkv, height, width):
  """The rotation in float64, a token, a head and a pair of channels at a time."""
  out = np.float64(qkv).reshape(BATCH, -1, 3, HEADS, WIDTH)
  quarter = WIDTH // 4
  for n in range(height * width):
    row, column = divmod(n, width)
    places = (2 * (row + 0.5) / height - 1, 2 * (column + 0.5) / width - 1)
    for k in range(WIDTH // 2):
      angle = 2 * math.pi * places[k // quarter] / 100 ** (k % quarter / quarter)
      x = out[:, PREFIX + n, :2, :, k].copy()
      y = out[:, PREFIX + n, :2, :, k + WIDTH // 2].copy()
      out[:, PREFIX + n, :2, :, k] = x * math.cos(angle) - y * math.sin(angle)
      out[:, PREFIX + n, :2, :, k + WIDTH // 2] = y * math.cos(angle) + x * math.sin(
        angle
      )
  return out.reshape(qkv.shape)


@jax.jit
def rotate(qkv, places):
  return rope.Rope().rotate(jnp.asarray(qkv), places=places, heads=HEADS)


def scores(qkv, places):
  """Products of all queries and keys of patches, [B, heads, N, N]."""
  turned = np.asarray(rotate(qkv, places))[:, PREFIX:]
  turned = turned.reshape(BATCH, -1, 3, HEADS, WIDTH)
  return np.einsum("bqhd,bkhd->bhqk", turned[:, :, 0], turned[:, :, 1])


@pytest.mark.parametrize("height, width", [(4, 4), (2, 5)])
def test_rotation_equals_a_float64_oracle(height, width):
  qkv = packed(height * width)
  found = rotate(qkv, rope.Rope().places(None, height, width))
  np.testing.assert_allclose(found, by_hand(qkv, height, width), atol=1e-5)


def test_values_cls_and_registers_keep_every_bit():
  qkv = packed(6)
  found = np.asarray(rotate(qkv, rope.Rope().places(None, 2, 3)))
  np.testing.assert_array_equal(found[:, :PREFIX], qkv[:, :PREFIX])
  values = slice(2 * HEADS * WIDTH, None)
  np.testing.assert_array_equal(found[..., values], qkv[..., values])


def test_a_shift_of_all_patches_changes_no_score():
  qkv, places = packed(12), jnp.float32(rope.coordinates(3, 4))
  shifted = scores(qkv, places + np.float32([0.3, -0.7]))
  np.testing.assert_allclose(shifted, scores(qkv, places), atol=1e-5)
  assert np.abs(scores(qkv, 1.5 * places) - scores(qkv, places)).max() > 0.1


def test_patches_that_change_places_take_their_rotation_along():
  qkv, places = packed(6), jnp.float32(rope.coordinates(2, 3))
  order = np.random.default_rng(1).permutation(6)
  tokens = np.concatenate([np.arange(PREFIX), PREFIX + order])
  np.testing.assert_array_equal(
    rotate(qkv[:, tokens], places[order]), np.asarray(rotate(qkv, places))[:, tokens]
  )


def test_periods_of_released_files_are_rounded_to_bfloat16():
  exact, rounded = (rope.periods(64, dtype=d) for d in ("float32", "bfloat16"))
  np.testing.assert_allclose(exact, [100 ** (i / 16) for i in range(16)], rtol=1e-6)
  assert np.abs(rounded / exact - 1).max() < 0.002
  assert (rounded != exact).any()
  np.testing.assert_array_equal(rounded.view(np.uint32) & 0xFFFF, 0)


def test_random_places_stay_within_their_bounds_and_keep_their_order():
  places = jnp.float32(rope.coordinates(4, 4))
  draw = functools.partial(rope.augment, shift=0.5, jitter=1.5, rescale=2.0)
  keys = jax.random.split(jax.random.key(0), 2000)
  found = np.asarray(jax.jit(jax.vmap(draw, (0, None)))(keys, places))
  places = np.asarray(places)
  gaps = np.asarray(found[:, 5] - found[:, 0]) / np.asarray(places[5] - places[0])
  assert gaps.min() > 1 / 3 and gaps.max() < 3
  assert gaps.min() < 0.4 and gaps.max() > 2.5
  log_ratio = np.log(gaps[:, 0] / gaps[:, 1])  # of the axes: the scale falls out
  assert np.abs(log_ratio).max() < 2 * math.log(1.5)
  assert log_ratio.std() > 0.2
  middle = np.asarray(found).mean(1) / gaps  # of the grid, which is at 0 before
  assert np.abs(middle).max() < 0.5 and np.abs(middle).max() > 0.45
  plain = rope.augment(jax.random.key(0), places, shift=0.0, jitter=1.0, rescale=1.0)
  np.testing.assert_array_equal(plain, places)
