"""Patch tokens of images larger than a network was trained on, by sliding windows.

Attention and position embeddings of a network know images of about the size that it was
trained on. Each window is seen alone, and where windows overlap, the mean of their
tokens counts.

Dimension key of patches.py, and W windows along an axis, p patches of a window's side,
G patches of the image's.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax import errors
from dinojax.data import window_batches


def check(window: int, *, field: str, side: int, patch_size: int) -> None:
  """Raises UserError if windows of so many pixels cannot slide over images of S.

  Args:
    window: pixels of its side.
    field: what gives it, such as "--window".
    side: S.
    patch_size: of the network, pixels.
  """
  if window < patch_size or window % patch_size or window > side:
    nearest = max(round(min(window, side) / patch_size), 1) * patch_size
    raise errors.UserError(
      f"{field}={window} must be a multiple of the patch size, {patch_size}, and at"
      f" most --crop={side}; try {nearest}"
    )


def shares(grid: int, size: int) -> np.ndarray:
  """The share of each window's patches in those of an image, along an axis.

  Windows start about two thirds of their side apart, the last one ends at the border.

  Args:
    grid: G.
    size: p.

  Returns:
    float32 [G, W, p]; those of one patch of the image add up to 1.
  """
  starts = window_batches.starts(grid, size)
  place = starts[:, None] + np.arange(size)
  covers = place == np.arange(grid)[:, None, None]
  return np.float32(covers / covers.sum((1, 2), keepdims=True))


def patch_tokens(
  apply: Callable[[Any, jax.Array], jax.Array], *, window: int, patch_size: int
) -> Callable[[Any, jax.Array], jax.Array]:
  """A network that sees one window after the other, so that memory does not grow.

  Args:
    apply: (params, images [B, window, window, C]) -> patch tokens [B, p*p, D].
    window: pixels of its side, as of `check`.
    patch_size: pixels.

  Returns:
    Jitted (params, images [B, S, S, C]) -> patch tokens float32 [B, G*G, D].
  """

  @jax.jit
  def of_images(params, images):
    size, grid = window // patch_size, images.shape[1] // patch_size
    starts = window_batches.starts(grid, size) * patch_size
    places = np.stack(np.meshgrid(starts, starts, indexing="ij"), -1).reshape(-1, 2)

    def of_window(place):
      row, column = place
      cut = jax.lax.dynamic_slice_in_dim(images, row, window, axis=1)
      cut = jax.lax.dynamic_slice_in_dim(cut, column, window, axis=2)
      return apply(params, cut).astype(jnp.float32)

    tokens = jax.lax.map(of_window, jnp.asarray(places))  # [W*W, B, p*p, D]
    share, across = shares(grid, size), len(starts)
    tokens = tokens.reshape(across, across, len(images), size, size, -1)
    tokens = jnp.einsum(
      "yip,xjq,ijbpqd->byxd", share, share, tokens, precision="highest"
    )
    return tokens.reshape(len(images), grid * grid, -1)

  return of_images
