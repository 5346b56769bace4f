"""A batch too large for memory, in parts that run one after the other.

The leading axis of every array holds G groups, of any number of rows in each array. Of
n parts, part i is groups i, i + n, i + 2n and so on. Devices hold neighbouring groups,
so each has its share of every part, and no row leaves its device.
"""

from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp

from dinojax import sharding


def collect(function: Callable, *batch: Any, groups: int, parts: int) -> Any:
  """function(*batch), for a function that treats each group by itself.

  Args:
    function: maps any number of groups to a tree of arrays of as many groups.
    *batch: trees of [G*rows, ...].
    groups: G, a multiple of `parts`.
    parts: n; 1 calls the function as it is.
  """
  if parts == 1:
    return function(*batch)
  parted = _split(batch, groups, parts)

  def empty(x):
    shape = (groups // parts, parts, len(x) * parts // groups, *x.shape[1:])
    return sharding.constrain_batch(jnp.zeros(shape, x.dtype))

  # Written in place, at axis 1: stacked by the scan, parts would be copied into order.
  def body(whole, i):
    done = _split(function(*_take(parted, i)), groups // parts, 1)
    return jax.tree.map(lambda x, y: _put(x, y, i), whole, done), None

  whole = jax.tree.map(empty, jax.eval_shape(function, *_take(parted, 0)))
  whole, _ = jax.lax.scan(body, whole, jnp.arange(parts))
  return jax.tree.map(lambda x: einops.rearrange(x, "g n r ... -> (g n r) ..."), whole)


def mean(function: Callable, *batch: Any, groups: int, parts: int) -> Any:
  """The mean of function(*part) over the parts of a batch, summed in float32.

  For averages over equal shares of rows, and for their gradients, it is
  function(*batch). The function returns a tree of floats; arguments are of `collect`.
  """
  if parts == 1:
    return function(*batch)
  parted = _split(batch, groups, parts)

  def body(total, i):
    return jax.tree.map(jnp.add, total, function(*_take(parted, i))), None

  shapes = jax.eval_shape(function, *_take(parted, 0))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
  total, _ = jax.lax.scan(body, zeros, jnp.arange(parts))
  return jax.tree.map(lambda x: x / parts, total)


def _split(batch, groups, parts):
  """[G*rows, ...] -> [G/n, n, rows, ...], the first axis over the devices."""

  def leaf(x):
    x = einops.rearrange(x, "(g n r) ... -> g n r ...", g=groups // parts, n=parts)
    return sharding.constrain_batch(x)

  return jax.tree.map(leaf, batch)


def _take(parted, i):
  """[G/n, n, rows, ...] -> part i, [G/n*rows, ...]."""

  def leaf(x):
    x = jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False)
    return sharding.constrain_batch(einops.rearrange(x, "g r ... -> (g r) ..."))

  return jax.tree.map(leaf, parted)


def _put(whole, part, i):
  """Writes part i, [G/n, 1, rows, ...], into [G/n, n, rows, ...]."""
  return jax.lax.dynamic_update_slice_in_dim(whole, part, i, axis=1)
