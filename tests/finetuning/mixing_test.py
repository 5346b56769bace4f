"""Mixup and CutMix agree with NumPy, and shares say what images hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax import sharding
from dinojax.finetuning import mixing

KEY = jax.random.key(3)


def images(count=32, height=12, width=20):
  """Noise."""
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, height, width, 3), np.uint8)


def test_blended_pixels_are_the_weighted_mean():
  own, share = images(4), np.array([0.0, 0.3, 0.5, 1.0], np.float32)
  mixed, found = mixing.blend(jnp.asarray(own), jnp.asarray(share))
  weight = np.float64(share)[:, None, None, None]
  wanted = weight * own + (1 - weight) * own[::-1]
  assert np.abs(np.float64(mixed) - wanted).max() <= 0.5 + 1e-4
  np.testing.assert_array_equal(found, share)
  np.testing.assert_array_equal(mixed[0], own[3])


def test_a_pasted_box_is_the_other_image_and_its_share_is_counted():
  own = images()
  share = np.linspace(0, 1, len(own), dtype=np.float32)
  mixed, found = map(
    np.asarray, mixing.paste(jnp.asarray(own), jnp.asarray(share), KEY)
  )
  for i, (image, before, other) in enumerate(zip(mixed, own, own[::-1], strict=True)):
    box = (image != before).any(-1)
    rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
    if len(rows):
      inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
      np.testing.assert_array_equal(image[inside], other[inside])
      before = before.copy()
      before[inside] = other[inside]
      area = (rows[-1] + 1 - rows[0]) * (columns[-1] + 1 - columns[0])
    else:
      area = 0
    np.testing.assert_array_equal(image, before)
    assert found[i] == pytest.approx(1 - area / (12 * 20), abs=1e-6)
    # Cut off at the border, a box never takes more than was drawn, but for rounding.
    assert found[i] >= share[i] - (12 + 20) / (12 * 20)
  assert found[-1] == 1 and found.min() < 0.5


def test_alpha_decides_how_shares_spread():
  few, many = [], []
  alpha = jnp.where(np.arange(32) < 16, 0.1, 1.0)  # compiled as in `mix`
  for seed in range(250):
    shares = np.asarray(mixing.beta(jax.random.key(seed), alpha))
    few.append(shares[:16])
    many.append(shares[16:])
  for shares, variance in ((np.array(few), 1 / (4 * 1.2)), (np.array(many), 1 / 12)):
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_each_image_is_blended_or_cut_as_asked(mixup, cutmix):
  own = images()
  mixed, share = mixing.mix(KEY, jnp.asarray(own), mixup=mixup, cutmix=cutmix)
  mixed = np.asarray(mixed)
  whole = (mixed == own).all(-1) | (mixed == own[::-1]).all(-1)
  cut = whole.all((1, 2))
  if mixup and cutmix:
    assert 8 < cut.sum() < 24
  else:
    assert cut.all() if cutmix else not cut.any()
  assert float(share.min()) >= 0 and float(share.max()) <= 1


def test_eight_devices_mix_as_one():
  mix = functools.partial(mixing.mix, KEY, mixup=0.5, cutmix=1.0)
  mixed, share = mix(jnp.asarray(images()))
  mesh = sharding.make_mesh(data=2, fsdp=4)
  with jax.set_mesh(mesh):
    placed = jax.device_put(images(), sharding.batch_sharding(mesh))
    found, found_share = jax.jit(mix)(placed)
  np.testing.assert_array_equal(found, mixed)
  np.testing.assert_allclose(found_share, share, 1e-6)
