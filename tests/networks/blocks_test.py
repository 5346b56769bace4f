"""Drop path on subsets of the crops: what it keeps, and that its expectation stays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.networks import blocks


@functools.partial(jax.jit, static_argnames=("branch", "rate"))
def add_on_subset(x, branch, *, rate, groups, key):
  """x with a branch of some crops added, as a block does it."""
  chosen = blocks.draw(key, groups, len(x) // len(groups), rate=rate)
  x, seen = blocks.choose(x, chosen)
  return blocks.add_on_chosen(x, branch(seen), chosen)


def test_drop_path_runs_the_branch_on_exactly_the_kept_crops_of_each_group():
  x = jnp.zeros((3 * 5, 2, 4))
  seen = []

  def branch(crops):
    seen.append(crops.shape)
    return jnp.ones_like(crops)

  out = add_on_subset(x, branch, rate=0.4, groups=jnp.arange(3), key=jax.random.key(0))
  assert seen == [(3 * 3, 2, 4)]
  changed = np.asarray(out)[:, 0, 0].reshape(3, 5) != 0
  np.testing.assert_array_equal(changed.sum(1), [3, 3, 3])
  np.testing.assert_allclose(np.unique(out), [0, 5 / 3], rtol=1e-6)


def test_drop_path_of_two_fifths_keeps_three_fifths_rounded_down_but_one():
  kept = {1: 1, 2: 1, 3: 1, 5: 3, 10: 6, 32: 19, 128: 76}
  assert {crops: blocks.kept_crops(crops, 0.4) for crops in kept} == kept
  chosen = blocks.draw(jax.random.key(0), jnp.arange(2), 32, rate=0.4)
  assert [len(set(row)) for row in np.asarray(chosen).tolist()] == [19, 19]


def test_drop_path_preserves_the_expectation():
  x = np.random.default_rng(0).normal(size=(2 * 3, 2, 4)).astype(np.float32)
  branch = lambda y: jnp.sin(3 * y)  # noqa: E731
  kwargs = dict(rate=0.5, groups=jnp.arange(2))
  draw = lambda key: add_on_subset(x, branch, key=key, **kwargs)  # noqa: E731
  draws = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000))
  # One of three is kept, scaled by 3: the deviation of a mean is below 0.023.
  np.testing.assert_allclose(draws.mean(0), x + np.sin(3 * x), atol=0.1)


def test_drop_path_groups_draw_each_for_itself_and_never_mix():
  x = np.random.default_rng(0).normal(size=(4 * 6, 2, 4)).astype(np.float32)
  other = x.copy()
  other[6:] = 9  # groups 1 to 3

  def out(x):
    kwargs = dict(rate=0.5, groups=jnp.arange(4), key=jax.random.key(1))
    return np.asarray(add_on_subset(x, jnp.square, **kwargs))

  np.testing.assert_array_equal(out(x)[:6], out(other)[:6])
  picks = np.asarray(out(x) != x)[:, 0, 0].reshape(4, 6)
  assert len({tuple(pick) for pick in picks}) > 1


def test_what_a_group_draws_depends_on_its_id_and_not_on_the_groups_beside_it():
  def picks(ids):
    x, kwargs = jnp.zeros((len(ids) * 6, 1, 1)), dict(rate=0.5, key=jax.random.key(1))
    out = add_on_subset(x, jnp.ones_like, groups=jnp.array(ids), **kwargs)
    return np.asarray(out).reshape(len(ids), 6)

  np.testing.assert_array_equal(picks([0, 1, 2, 3])[[3, 1]], picks([3, 1]))


def test_the_scale_of_a_chosen_branch_is_not_rounded_to_the_branchs_type():
  rng = np.random.default_rng(0)
  delta = jnp.asarray(rng.uniform(1, 2, size=(3, 100, 100)), jnp.bfloat16)
  x, chosen = jnp.zeros((5, 100, 100)), jnp.array([[0, 1, 2]])
  ratio = blocks.add_on_chosen(x, delta, chosen)[:3] / delta.astype(jnp.float32)
  # Each is rounded by itself; 5/3 in bfloat16 would be off by 1.5e-3 for all.
  np.testing.assert_allclose(ratio.mean(), 5 / 3, rtol=2e-4)
