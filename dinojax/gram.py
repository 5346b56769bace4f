"""Gram anchoring (DINOv3): patches stay as alike as an earlier teacher saw them.

In long runs image features keep improving while patch features get worse. So the Gram
matrix of a crop, the cosines of all pairs of its patches, is held to that of a Gram
teacher: a copy of the EMA teacher from an earlier step, which is replaced at given
steps. Features themselves stay free. The Gram teacher may see the crops larger, without
changes of colour; its patches are then reduced to the student's grid.

C crops, N patches, D channels.
"""

from typing import Any

import einops
import jax
import jax.numpy as jnp

from dinojax import sharding
from dinojax.networks import positions, vit

# Bytes of Gram matrices on a device at one time: of 256 patches, those of 256 crops.
CHUNK_BYTES = 2**26


def loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean squared difference of the Gram matrices of student and Gram teacher, float32.

  Args:
    student: [C, N, D] patch tokens.
    teacher: the Gram teacher's, of the same crops.

  Returns:
    [] mean over crops and pairs of patches. Each device has a few crops' matrices at a
    time, and the backward pass recomputes them.
  """
  return sharding.per_device(_in_chunks)(student, teacher).mean()


def _in_chunks(student, teacher):
  """The loss of each crop, [C]."""
  crops, patches, _ = student.shape
  size = max(min(crops, CHUNK_BYTES // (4 * patches**2)), 1)
  while crops % size:
    size -= 1
  if size == crops:
    return _of_crops(student, teacher)
  chunks = [
    einops.rearrange(x, "(k c) n d -> k c n d", c=size) for x in (student, teacher)
  ]
  of_chunk = jax.checkpoint(lambda chunk: _of_crops(*chunk))
  return jax.lax.map(of_chunk, chunks).reshape(-1)


def _of_crops(student, teacher):
  difference = gram(student) - gram(teacher)
  return jnp.square(difference).mean((1, 2))


def gram(patches: jax.Array) -> jax.Array:
  """Cosines of all pairs of patches of a crop: [C, N, D] -> [C, N, N] float32."""
  x = patches.astype(jnp.float32)
  x = x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
  return jnp.einsum("cnd,cmd->cnm", x, x, precision="highest")


def reduce(patches: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """Resizes square grids of patches bicubically: [C, M*M, D] -> [C, rows*cols, D]."""
  side = round(patches.shape[1] ** 0.5)
  if grid == (side, side):
    return patches
  rows, columns = (
    positions.bicubic_matrix(side, n, antialias=False, extra=0.0) for n in grid
  )
  square = einops.rearrange(patches, "c (r k) d -> c r k d", r=side)
  small = jnp.einsum("hr,wk,crkd->chwd", rows, columns, square, precision="highest")
  return einops.rearrange(small, "c h w d -> c (h w) d")


def patches(params: Any, batch: dict, *, backbone: vit.VisionTransformer) -> jax.Array:
  """The Gram teacher's patch tokens of the global crops, on the student's grid.

  Args:
    params: of the Gram teacher's backbone.
    batch: with "gram_crops" [B, V, S, S, 3], or else "global_crops".
    backbone: the network.

  Returns:
    [B*V, N, D].
  """
  crops = batch.get("gram_crops", batch["global_crops"])
  crops = backbone.normalize(einops.rearrange(crops, "b v ... -> (b v) ..."))
  (seen,) = backbone.apply({"params": params}, (crops,), (None,))
  return reduce(seen.patches, backbone.grid(batch["global_crops"][0]))


def refresh(params: Any, teacher: Any, step: jax.Array, *, steps: tuple) -> Any:
  """The Gram teacher after `step` updates: the EMA teacher's copy if one is due then.

  Args:
    params: the Gram teacher's before.
    teacher: backbone of the EMA teacher.
    step: completed updates, [].
    steps: `config.gram.refresh_steps`.
  """
  if not steps:
    return params
  due = jnp.isin(step, jnp.asarray(steps))
  return jax.lax.cond(due, lambda: teacher, lambda: params)
