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
import numpy as np

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
  # Two products with the weights on the right: `jax.image.resize` takes no batch of
  # unknown size, and jax2onnx mistakes other products.
  rows, columns = map(bilinear, shape, sides)
  values = einops.rearrange(scores, "b (h w) c -> b w c h", h=shape[0], w=shape[1])
  values = jnp.dot(values, rows, precision="highest")  # [B, W, C, S]
  values = einops.rearrange(values, "b w c y -> b y c w")
  values = jnp.dot(values, columns, precision="highest")  # [B, S, C, S]
  return values.argmax(2).astype(jnp.uint8)


def bilinear(few: int, many: int) -> np.ndarray:
  """Weights [few, many] of bilinear resizing along an axis, from few to many places."""
  places = (np.arange(many) + 0.5) * few / many - 0.5
  weights = np.maximum(1 - np.abs(places - np.arange(few)[:, None]), 0)
  return np.float32(weights / weights.sum(0))
