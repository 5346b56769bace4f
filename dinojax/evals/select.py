"""The largest of many values in each row, exactly, without sorting them.

Sorting is what costs in an exact search: `lax.top_k` walks a heap, on one thread of a
CPU. Here a threshold is bisected, what reaches it is packed into few slots, and only
those are ranked: comparisons and sums over whole rows, at the speed of memory on any
platform. Dimension key: Q rows, N values of a row, M slots, K wanted, W words.
"""

import jax
import jax.numpy as jnp
import numpy as np

BITS = 32  # of a packed word
LOWEST = np.int32(-0x7F800000)  # the key of the lowest finite value
NOTHING = np.iinfo(np.int32).min
PARTS = 16  # of a row, counted side by side


def slots_for(k: int) -> int:
  """M for K: some more, since a threshold that takes a few too many is found faster."""
  return -(-(k + max(k // 4, BITS)) // BITS) * BITS


def ordered_keys(x: jax.Array) -> jax.Array:
  """float32 to int32 of the same order, the two zeros to the same."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  return jnp.where(x == 0, 0, bits ^ ((bits >> 31) & 0x7FFFFFFF))


def shortlist(
  x: jax.Array, order: jax.Array, floor: jax.Array, *, k: int, slots: int
) -> tuple[jax.Array, jax.Array]:
  """Positions of at most M values of each row, with the K largest among them.

  Of equal values those of lower order come first. A value of -inf is never taken.

  Args:
    x: [Q, N] float32 without NaN.
    order: [Q, N] or [1, N] int32 from 0 on, different within a row.
    floor: [Q] int32, keys of values below which nothing is looked for; first `LOWEST`.
    k: K, at most M.
    slots: M.

  Returns:
    positions: [Q, M] int32, rising; N in slots that stay empty.
    floor: [Q] int32, raised as far as K values that reach it allow.
  """
  keys = ordered_keys(x)
  floor, size = _threshold(keys, floor, k, slots)

  def break_ties():
    # A threshold that more values reach than there are slots is one that most equal.
    above, equal = keys > floor[:, None], keys == floor[:, None]
    equal &= (size > slots)[:, None]
    count = above.sum(-1, dtype=jnp.int32)
    early = jnp.where(equal, -order, NOTHING)
    lowest = jnp.full_like(floor, NOTHING + 1)
    last, _ = _threshold(early, lowest, k - count, slots - count)
    chosen = above | (early >= last[:, None])
    return jnp.where((size > slots)[:, None], chosen, keys >= floor[:, None])

  taken = jax.lax.cond((size > slots).any(), break_ties, lambda: keys >= floor[:, None])
  return _positions(taken, slots), floor


def _threshold(keys, low, k, enough):
  """[Q] thresholds, and how many keys reach each: from k to `enough`.

  `low` itself where no more than `enough` reach it. More than `enough` only where equal
  keys leave no threshold between: then it is their value.
  """
  padding = ((0, 0), (0, -keys.shape[1] % PARTS))
  padded = jnp.pad(keys, padding, constant_values=NOTHING)

  def count(threshold):
    # Added elementwise, which CPUs do by eights. Cut here, in the loop: before it, each
    # part would be a copy, and a kernel to compile.
    parts = jnp.split(padded, PARTS, axis=1)  # [Q, N / PARTS]
    hits = sum((part >= threshold[:, None]).astype(jnp.int32) for part in parts)
    # Otherwise XLA counts again for each use of the number.
    return jax.lax.optimization_barrier(hits.sum(-1))

  def unsettled(state):
    low, high, size = state
    return (size > enough) & (high - 1 > low)

  def halve(state):
    low, high, size = state
    middle = (low & high) + ((low ^ high) >> 1)  # no overflow
    found = count(middle)
    up = unsettled(state) & (found >= k)
    down = unsettled(state) & (found < k)
    return (
      jnp.where(up, middle, low),
      jnp.where(down, middle, high),
      jnp.where(up, found, size),
    )

  # As low as the lowest key, if that leaves k.
  low = jnp.where(keys.shape[1] >= k, jnp.maximum(low, keys.min(-1)), low)
  high = jnp.maximum(low, keys.max(-1)) + 1
  state = (low, high, count(low))
  low, _, size = jax.lax.while_loop(lambda s: unsettled(s).any(), halve, state)
  return low, size


def _positions(mask, slots):
  """[Q, N] bool -> [Q, M] int32, where it is true, rising; N for the rest."""
  n = mask.shape[1]
  bits = jnp.pad(mask, ((0, 0), (0, -n % BITS))).reshape(len(mask), -1, BITS)
  words = (bits.astype(jnp.uint32) << jnp.arange(BITS, dtype=jnp.uint32)).sum(
    -1, dtype=jnp.uint32
  )  # [Q, W]
  sizes = jax.lax.population_count(words).astype(jnp.int32)
  ends = jnp.cumsum(sizes, axis=1)
  slot = jnp.arange(slots)
  # The word of each slot, and which of its bits: [Q, M].
  word = jax.vmap(
    lambda ends: jnp.searchsorted(ends, slot, side="right", method="scan_unrolled")
  )(ends)
  rest = slot - jnp.take_along_axis(ends - sizes, word, axis=1, mode="clip")
  word_bits = jnp.take_along_axis(words, word, axis=1, mode="clip")
  place = jnp.zeros_like(rest)
  for width in (16, 8, 4, 2, 1):
    lower = (word_bits >> place.astype(jnp.uint32)) & jnp.uint32(2**width - 1)
    size = jax.lax.population_count(lower).astype(jnp.int32)
    place = jnp.where(rest >= size, place + width, place)
    rest = jnp.where(rest >= size, rest - size, rest)
  return jnp.where(slot < ends[:, -1:], word * BITS + place, n)
