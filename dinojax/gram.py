"""Gram anchoring (DINOv3): patches stay as alike as an earlier teacher saw them.

In long runs image features keep improving while patch features get worse. So the Gram
matrix of a global crop, the cosines of all pairs of its patches, is held to that of a
Gram teacher: the backbone of the EMA teacher of an earlier step, which gets no gradient
and is replaced at given steps. Features themselves stay free.

The student's patches are those of its masked crops, masked ones among them. The Gram
teacher sees the same crops unmasked; larger ones, of the same window and flip, without
jitter, blur and solarization, if `config.gram.crop_size` says so. Its patches are then
resized to the student's grid.

C crops, N patches, D channels.
"""

from typing import Any

import einops
import jax
import jax.numpy as jnp

from dinojax import sharding
from dinojax.networks import positions, vit

# Of a device's Gram matrices of one network at one time: 256 crops of 256 patches.
CHUNK_BYTES = 2**26


def loss(student: jax.Array, gram_teacher: jax.Array) -> jax.Array:
  """Mean squared difference between the Gram matrices of two networks, float32.

  Each device has the matrices of a few crops at a time where those of all are large;
  the backward pass then computes them again.

  Args:
    student: [C, N, D] patch tokens.
    gram_teacher: of the same crops and grid.

  Returns:
    [] mean over crops and all N * N pairs of patches, of any sign.
  """
  return sharding.per_device(_in_chunks)(student, gram_teacher).mean()


def _in_chunks(student, gram_teacher):
  """The loss of each crop, [C], in the largest equal chunks that CHUNK_BYTES allow."""
  crops, patches, _ = student.shape
  size = max(min(crops, CHUNK_BYTES // (4 * patches**2)), 1)
  while crops % size:
    size -= 1
  if size == crops:
    return _of_crops(student, gram_teacher)
  chunks = [
    einops.rearrange(x, "(k c) n d -> k c n d", c=size) for x in (student, gram_teacher)
  ]
  of_chunk = jax.checkpoint(lambda chunk: _of_crops(*chunk))
  return jax.lax.map(of_chunk, chunks).reshape(-1)


def _of_crops(student, gram_teacher):
  return jnp.square(cosines(student) - cosines(gram_teacher)).mean((1, 2))


def cosines(patches: jax.Array) -> jax.Array:
  """Gram matrix of the unit vectors of a crop's patches: [C, N, D] -> [C, N, N]."""
  x = patches.astype(jnp.float32)
  # A patch of zeros stays one, with a finite gradient.
  x = x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
  return jnp.einsum("cnd,cmd->cnm", x, x, precision="highest")


def resize(patches: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """Resizes square grids of patches bicubically: [C, M*M, D] -> [C, rows*cols, D].

  As the reference: without antialiasing, before the patches become unit vectors.
  """
  side = round(patches.shape[1] ** 0.5)
  if grid == (side, side):
    return patches
  rows, columns = (
    positions.bicubic_matrix(side, n, antialias=False, extra=0.0) for n in grid
  )
  square = einops.rearrange(patches, "c (r k) d -> c r k d", r=side)
  small = jnp.einsum("hr,wk,crkd->chwd", rows, columns, square, precision="highest")
  return einops.rearrange(small, "c h w d -> c (h w) d")


def teacher_patches(
  params: Any, batch: dict, *, backbone: vit.VisionTransformer
) -> jax.Array:
  """The Gram teacher's patch tokens of the global crops, on the student's grid.

  Args:
    params: of the Gram teacher.
    batch: with "gram_crops" [B, V, S, S, C], or else "global_crops".
    backbone: the network.

  Returns:
    [B*V, N, D].
  """
  crops = batch.get("gram_crops", batch["global_crops"])
  crops = backbone.normalize(einops.rearrange(crops, "b v ... -> (b v) ..."))
  (seen,) = backbone.apply({"params": params}, (crops,), (None,))
  of_one_image = batch["global_crops"][0]  # [V, S, S, C]
  return resize(seen.patches, backbone.grid(of_one_image))


def refresh(gram_teacher: Any, ema: Any, step: jax.Array, *, steps: tuple) -> Any:
  """The Gram teacher after `step` updates: a copy of the EMA teacher if one is due.

  Args:
    gram_teacher: before; None: there is none, nor are there `steps`.
    ema: backbone of the EMA teacher after the update.
    step: completed updates, [].
    steps: `config.gram.refresh_steps`.
  """
  if not steps:
    return gram_teacher
  due = jnp.isin(step, jnp.asarray(steps))
  return jax.lax.cond(due, lambda: ema, lambda: gram_teacher)
