"""The shortlist of each row holds its largest values, whatever they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.evals import select

ROWS, N, K = 37, 333, 20


def values(kind):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(ROWS, N)).astype(np.float32)
  if kind == "ties":
    x = np.round(x)
  elif kind == "few":
    x[rng.random(x.shape) < 0.97] = -np.inf
  elif kind == "zeros":
    x = np.where(rng.random(x.shape) < 0.5, np.float32(-0.0), np.float32(0.0))
  elif kind == "extreme":
    x = (np.sign(x) * np.exp2(20 * np.abs(x))).astype(np.float32)
    x[:, ::7] = np.finfo(np.float32).min
    x[:, ::11] = np.inf
  return x


NO_FLOOR = np.full(ROWS, select.LOWEST)


@jax.jit
def top(x, order, floor):
  """Positions of the K largest, as a search finds them in the shortlist."""
  slots = select.slots_for(K)
  kept, floor = select.shortlist(x, order, floor, k=K, slots=slots)
  found = jnp.take_along_axis(x, kept, axis=1, mode="fill", fill_value=-jnp.inf)
  order = jnp.take_along_axis(
    jnp.broadcast_to(order, x.shape), kept, axis=1, mode="fill", fill_value=N
  )
  best = jnp.lexsort((order, -found), axis=1)[:, :K]
  return kept, jnp.take_along_axis(kept, best, axis=1), floor


@pytest.mark.parametrize("kind", ["plain", "ties", "few", "zeros", "extreme"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_the_k_largest_are_kept_and_ranked_with_the_lower_order_of_equals(
  kind, shuffled
):
  x, order = values(kind), np.arange(N, dtype=np.int32)[None]
  if shuffled:
    order = np.random.default_rng(1).permuted(np.repeat(order, ROWS, 0), axis=1)
  kept, best, _ = jax.device_get(top(x, order, NO_FLOOR))
  assert (np.diff(kept, axis=1) >= 0).all()
  for row in range(ROWS):
    ranks = np.lexsort((np.broadcast_to(order, x.shape)[row], -x[row]))
    ranks = [i for i in ranks[:K] if x[row, i] > -np.inf]
    np.testing.assert_array_equal(best[row][: len(ranks)], ranks)
    assert (best[row][len(ranks) :] == N).all()


def test_a_floor_is_reached_by_k_values_and_hides_none_of_the_k_largest():
  x, order = values("plain"), np.arange(N, dtype=np.int32)[None]
  first, _, floor = jax.device_get(top(x, order, NO_FLOOR))
  assert ((first < N).sum(1) >= K).all()
  again, best, _ = jax.device_get(top(x, order, floor))
  np.testing.assert_array_equal(best, np.argsort(-x, axis=1)[:, :K])
  assert ((again < N).sum(1) < N / 4).all()
