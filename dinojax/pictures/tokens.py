"""Patch tokens and attention of a frozen backbone, at more patches than in training.

Positions are those of the images' own grid, as in training.
"""

import functools
from typing import Any

import einops
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from dinojax import backbone, sharding
from dinojax.networks import blocks, layers, vit

MOST_PATCHES = 32  # along a side, unless the backbone has more: 32 * 14 = 448 pixels
FEWEST_PATCHES = 16  # along a side: a map of fewer shows squares


@flax.struct.dataclass
class Tokens:
  """What a teacher makes of images; float32, on every device.

  image: [B, D], the image feature. patches: [B, N, D]. attention: [B, H, N], how much
  the image feature's query attends to each patch in the last block, for each head. The
  query of "cls" is CLS. That of "gap", the mean patch token, is each patch in turn, and
  the attention is the mean over them. Rows sum to 1 less what CLS and registers get.
  """

  image: jax.Array
  patches: jax.Array
  attention: jax.Array


def grid(module: vit.VisionTransformer, crop: int) -> int:
  """Patches along a side of the images for pictures: twice those of evaluation.

  At least FEWEST_PATCHES, at most MOST_PATCHES, and never less than in evaluation.

  Args:
    module: the backbone.
    crop: pixels of a side of the images that it is evaluated on.
  """
  usual = crop // module.patch_size
  return max(min(max(2 * usual, FEWEST_PATCHES), MOST_PATCHES), usual)


@functools.partial(jax.jit, static_argnums=0)
def compute(module: vit.VisionTransformer, params: Any, images: jax.Array) -> Tokens:
  """`Tokens` of uint8 images [B, S, S, 3].

  Of several processes each gives all of the images; all call it at one time, and B is a
  multiple of the devices.
  """
  seen = backbone.apply(module, params, images)
  found = Tokens(seen.image, seen.patches, attention(module, params, images))
  return jax.tree.map(sharding.gather, found)


@functools.partial(jax.jit, static_argnums=0)
def image_features(
  module: vit.VisionTransformer, params: Any, images: jax.Array
) -> jax.Array:
  """The image features [B, D] of `Tokens` alone."""
  return sharding.gather(backbone.apply(module, params, images).image)


def attention(
  module: vit.VisionTransformer, params: Any, images: jax.Array
) -> jax.Array:
  """The attention of `Tokens`, computed from the tokens that enter the last block."""
  block = jax.tree.map(lambda x: x[-1], params["blocks"])
  norm = nn.LayerNorm(epsilon=module.norm_eps)
  x = norm.apply({"params": block["norm1"]}, entering_last(module, params, images))
  dense = layers.Dense(
    3 * module.width, "float32", biased=blocks.BIASED[module.qkv_bias]
  )
  with jax.default_matmul_precision("highest"):
    ((qkv,),) = dense.apply({"params": block["attn"]["qkv"]}, [x])
  if rotation := module.rotation(train=False):
    places = rotation.places(None, *module.grid(images))
    qkv = rotation.rotate(qkv, places=places, heads=module.heads)
  q, k, _ = einops.rearrange(qkv, "b t (s h d) -> s h b t d", s=3, h=module.heads)
  first_patch = 1 + module.registers
  q = q[:, :, :1] if module.pool == "cls" else q[:, :, first_patch:]

  def of_head(pair):  # one after the other: [B, T, T] of all would take much memory
    q, k = pair
    scores = jnp.einsum("bqd,bkd->bqk", q, k, precision="highest")
    return jax.nn.softmax(scores * q.shape[-1] ** -0.5).mean(1)

  of_heads = jax.lax.map(of_head, (q, k))  # [H, B, T]
  return einops.rearrange(of_heads, "h b t -> b h t")[..., first_patch:]


def entering_last(
  module: vit.VisionTransformer, params: Any, images: jax.Array
) -> jax.Array:
  """Tokens [B, T, D] that enter the last block: CLS, registers, patches."""
  before = module.depth - 1
  shallow = {**params, "blocks": jax.tree.map(lambda x: x[:before], params["blocks"])}
  seen = []

  def keep(call, arguments, options, context):
    if context.module.name == "norm":  # the network's last layer
      seen.append(arguments[0])
    return call(*arguments, **options)

  with nn.intercept_methods(keep):
    backbone.apply(module.clone(depth=before), shallow, images)
  return seen[0]
