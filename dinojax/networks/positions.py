"""Position embeddings (positional encoding) of a grid of patches, resized.

PyTorch's two kinds of bicubic interpolation, written as matrices.
"""

import einops
import jax
import jax.numpy as jnp
import numpy as np


def bicubic_matrix(
  source: int, target: int, *, antialias: bool, extra: float
) -> np.ndarray:
  """Weights [target, source] that resize one axis of a map of patches.

  Like PyTorch's interpolate. Without antialiasing: a = -0.75, clamped borders. With it:
  a = -0.5, weights outside the border dropped and the rest normalised.

  Args:
    source: patches before.
    target: patches after.
    antialias: whether fewer patches are means over more of them.
    extra: part of a patch by which the target is taken for larger.
  """
  a = -0.5 if antialias else -0.75
  step = source / (target + extra)
  stretch = max(step, 1.0) if antialias else 1.0

  def cubic(x):
    x = abs(x)
    if x < 1:
      return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0

  weights = np.zeros((target, source))
  for row in range(target):
    center = (row + 0.5) * step - 0.5
    reach = int(np.ceil(2 * stretch)) + 1
    for tap in range(int(center) - reach, int(center) + reach + 1):
      if not antialias or 0 <= tap < source:
        column = min(max(tap, 0), source - 1)
        weights[row, column] += cubic((tap - center) / stretch)
  return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def resize(
  pos_embed: jax.Array, height: int, width: int, *, antialias: bool
) -> jax.Array:
  """Resizes the patches' position embeddings [M*M, D] to [height*width, D]."""
  m = round(len(pos_embed) ** 0.5)
  if (height, width) == (m, m):
    return pos_embed
  # Released weights without registers were trained with a scale of (n + 0.1) / m.
  how = dict(antialias=antialias, extra=0.0 if antialias else 0.1)
  rows, columns = (bicubic_matrix(m, n, **how) for n in (height, width))
  square = einops.rearrange(pos_embed, "(r c) d -> r c d", r=m)
  resized = jnp.einsum("hr,wc,rcd->hwd", rows, columns, square, precision="highest")
  return einops.rearrange(resized, "h w d -> (h w) d")
