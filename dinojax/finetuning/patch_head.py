"""Head of segmentation: batch norm and a linear layer on each patch of the last block.

DIFFERS: the norm of the usual heads (DINOv2, DINOv3) has a scale and an offset, too,
which the linear layer has anyway. The loss is that of a patch, with the shares of the
classes in its pixels as soft labels, as in evals/linear_segmentation.py: logits at the
size of the image would take more memory than the network.

Dimension key: B images, N patches, H x W of them, S pixels of a side, D width, C
classes.
"""

import einops
import jax
import jax.numpy as jnp

EPSILON = 1e-5  # of the variance
NORM = ("mean", "variance")
MOMENTUM = 0.9  # of the statistics that evaluation uses


def first_norm(width: int) -> dict[str, jax.Array]:
  """Statistics before training: {"mean": [D], "variance": [D]}."""
  return {"mean": jnp.zeros(width), "variance": jnp.ones(width)}


def batch_norm(patches: jax.Array) -> dict[str, jax.Array]:
  """Statistics of the patches [B, N, D] of a batch, on all devices."""
  return {"mean": patches.mean((0, 1)), "variance": patches.var((0, 1))}


def scores(
  head: dict[str, jax.Array], norm: dict[str, jax.Array], patches: jax.Array
) -> jax.Array:
  """[B, N, C] of patches [B, N, D]; head: {"kernel": [D, C], "bias": [C]}."""
  scale = jax.lax.rsqrt(norm["variance"] + EPSILON)
  normal = (patches - norm["mean"]) * scale
  return jnp.dot(normal, head["kernel"], precision="highest") + head["bias"]


def label_maps(scores: jax.Array, shape: tuple[int, int], sides: tuple[int, int]):
  """The class of each pixel, uint8 [B, *sides], after bilinear resizing of the scores.

  Args:
    scores: [B, N, C].
    shape: (H, W).
    sides: of the image, pixels.
  """
  values = einops.rearrange(scores, "b (h w) c -> b h w c", h=shape[0], w=shape[1])
  # As two products: `jax.image.resize` takes no batch of unknown size.
  rows, columns = (
    jax.image.resize(jnp.eye(few), (many, few), "linear", precision="highest")
    for few, many in zip(shape, sides, strict=True)
  )
  wide = jnp.einsum("yh,bhwc,xw->byxc", rows, values, columns, precision="highest")
  return wide.argmax(-1).astype(jnp.uint8)
