"""Gradient accumulation: a batch too large for memory runs as n microbatches.

The leading axis of every array holds G groups, of any number of rows in each array.
Microbatch i is groups i, i + n, i + 2n and so on. Devices hold neighbouring groups, so
each device has its slice of every microbatch, and no row leaves its device.
"""

from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp

from dinojax import sharding


def collect(function: Callable, *batch: Any, groups: int, microbatches: int) -> Any:
  """function(*batch), for a function that treats each group by itself.

  Args:
    function: maps any number of groups to a tree of arrays of as many groups.
    *batch: trees of [G*rows, ...].
    groups: G, a multiple of `microbatches`.
    microbatches: n; 1 calls the function as it is.
  """
  if microbatches == 1:
    return function(*batch)
  split = _split(batch, groups, microbatches)

  def empty(x):
    n = microbatches
    shape = (groups // n, n, len(x) * n // groups, *x.shape[1:])
    return sharding.constrain_batch(jnp.zeros(shape, x.dtype))

  # Written in place, at axis 1: stacked by the scan, they would be copied into order.
  def body(whole, i):
    done = _split(function(*_microbatch(split, i)), groups // microbatches, 1)
    return jax.tree.map(lambda x, y: _put(x, y, i), whole, done), None

  whole = jax.tree.map(empty, jax.eval_shape(function, *_microbatch(split, 0)))
  whole, _ = jax.lax.scan(
    body, whole, jnp.arange(microbatches), unroll=sharding.unroll(microbatches)
  )
  return jax.tree.map(lambda x: einops.rearrange(x, "g n r ... -> (g n r) ..."), whole)


def mean(function: Callable, *batch: Any, groups: int, microbatches: int) -> Any:
  """The mean of function(*microbatch) over the microbatches, summed in float32.

  For averages over equal numbers of rows, and for their gradients, it equals
  function(*batch). The function returns a tree of floats; arguments as of `collect`.
  """
  if microbatches == 1:
    return function(*batch)
  split = _split(batch, groups, microbatches)

  def body(total, i):
    return jax.tree.map(jnp.add, total, function(*_microbatch(split, i))), None

  shapes = jax.eval_shape(function, *_microbatch(split, 0))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
  total, _ = jax.lax.scan(
    body, zeros, jnp.arange(microbatches), unroll=sharding.unroll(microbatches)
  )
  return jax.tree.map(lambda x: x / microbatches, total)


def _split(batch, groups, n):
  """[G*rows, ...] -> [G/n, n, rows, ...], the first axis over the devices."""

  def leaf(x):
    x = einops.rearrange(x, "(g n r) ... -> g n r ...", g=groups // n, n=n)
    return sharding.constrain_batch(x)

  return jax.tree.map(leaf, batch)


def _microbatch(split, i):
  """[G/n, n, rows, ...] -> microbatch i, [G/n*rows, ...]."""

  def leaf(x):
    x = jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False)
    return sharding.constrain_batch(einops.rearrange(x, "g r ... -> (g r) ..."))

  return jax.tree.map(leaf, split)


def _put(whole, microbatch, i):
  """Writes microbatch i, [G/n, 1, rows, ...], into [G/n, n, rows, ...]."""
  return jax.lax.dynamic_update_slice_in_dim(whole, microbatch, i, axis=1)
