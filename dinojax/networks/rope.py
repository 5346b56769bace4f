"""Rotary position embeddings (RoPE, arXiv:2104.09864) of patches, as DINOv3 has them.

Queries and keys of patches are rotated by angles that follow row and column. Their
products then depend on the way from one patch to the other, and any grid will do: there
is nothing to resize. CLS and register tokens have no place, and are not rotated.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BASE = 100.0  # of the periods, in all released models


class Rope(NamedTuple):
  """How patches are rotated. Fields are those of `config.backbone`, without "rope_".

  shift, jitter, rescale: of `augment`; 0, 1, 1: none. periods: type to which they are
  rounded; released .pth files hold them in "bfloat16".
  """

  shift: float = 0.0
  jitter: float = 1.0
  rescale: float = 1.0
  periods: str = "float32"

  @property
  def augments(self) -> bool:
    """Whether places are drawn at random."""
    return (self.shift, self.jitter, self.rescale) != (0, 1, 1)

  def places(self, key: jax.Array | None, height: int, width: int) -> jax.Array:
    """`coordinates` of a grid, after `augment` with the key, if there is one."""
    places = jnp.float32(coordinates(height, width))
    if key is None:
      return places
    amounts = dict(shift=self.shift, jitter=self.jitter, rescale=self.rescale)
    return augment(key, places, **amounts)

  def rotate(self, qkv: jax.Array, *, places: jax.Array, heads: int) -> jax.Array:
    """Rotates the queries and keys of the last N tokens, in float32.

    Channel k of a head turns with channel k + d/2: the first quarter of the channels by
    row, the second by column.

    Args:
      qkv: [B, T, 3 * D] queries, keys, values, each with its heads side by side.
      places: [N, 2], of `places`.
      heads: D / d.

    Returns:
      As `qkv`.
    """
    b, t, packed = qkv.shape
    width = packed // (3 * heads)
    turns = places[:, :, None] / periods(width, dtype=self.periods)  # [N, 2, d/4]
    angles = 2 * jnp.pi * turns.reshape(len(places), -1)  # [N, d/2]
    # An angle of 0 leaves values, CLS and registers as they are.
    angles = [x[:, None] for x in (angles, angles, jnp.zeros_like(angles))]
    angles = jnp.concatenate(angles, 1)  # [N, 3, d/2]
    angles = jnp.pad(angles, ((t - len(places), 0), (0, 0), (0, 0)))
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    halves = qkv.astype(jnp.float32).reshape(b, t, 3, heads, 2, width // 2)
    first, second = halves[..., 0, :], halves[..., 1, :]
    # No jnp.stack, which jax2onnx does not know.
    turned = [first * cos - second * sin, second * cos + first * sin]
    turned = jnp.concatenate(turned, -1)
    return turned.reshape(qkv.shape).astype(qkv.dtype)


def periods(width: int, *, dtype: str) -> np.ndarray:
  """Periods of the rotations, [d/4] float32: from 1 to BASE^(1 - 4/d), for either axis.

  Args:
    width: d, channels of a head, a multiple of 4.
    dtype: to which they are rounded.
  """
  exact = BASE ** np.arange(0, 1, 4 / width, dtype=np.float32)
  return exact.astype(jnp.dtype(dtype)).astype(np.float32)


def coordinates(height: int, width: int) -> np.ndarray:
  """Rows and columns of the centres of patches, [height * width, 2] within (-1, 1)."""
  rows, columns = (2 * (np.arange(n) + 0.5) / n - 1 for n in (height, width))
  return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)


def augment(
  key: jax.Array, places: jax.Array, *, shift: float, jitter: float, rescale: float
) -> jax.Array:
  """Coordinates [N, 2] shifted, stretched by axis, then scaled, all at random.

  Args:
    key: random key.
    places: of `coordinates`.
    shift: largest shift of an axis.
    jitter: largest factor of an axis, or its inverse, drawn by its logarithm.
    rescale: the same for both axes together.
  """
  keys = jax.random.split(key, 3)

  def factor(key, most, shape):
    bound = np.log(most)
    return jnp.exp(jax.random.uniform(key, shape, minval=-bound, maxval=bound))

  moved = places + jax.random.uniform(keys[0], (2,), minval=-shift, maxval=shift)
  return moved * factor(keys[1], jitter, (2,)) * factor(keys[2], rescale, ())
