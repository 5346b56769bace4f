"""VisionTransformer: patches, tokens, blocks, LayerScale, batch-subset drop path.

One call takes crops of several resolutions at once, each as its own batch: a single
scan over the blocks carries all, so a layer's weights are gathered once per pass
and attention needs no mask. The residual stream is float32: LayerScale starts at 1e-5,
and bfloat16 would round a branch that small away. Matmuls run in `dtype`.
"""

import functools
from collections.abc import Callable, Sequence

import chex
import einops
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dinojax import positions, sharding

LN_EPS = 1e-6
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_dense_init = nn.initializers.normal(0.02)


def uniform(bound: float) -> Callable:
  """Initialiser: uniform within +-bound."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


@flax.struct.dataclass
class Features:
  """What the backbone says of a batch of crops, after the final LayerNorm, float32.

  image: [B, D], the image feature of `pool`. cls: [B, D]. patches: [B, N, D].
  """

  image: jax.Array
  cls: jax.Array
  patches: jax.Array


def normalize(images: jax.Array) -> jax.Array:
  """uint8 [..., 3] to float32 with the channels' ImageNet mean and deviation."""
  chex.assert_type(images, jnp.uint8)
  mean, std = np.float32(IMAGENET_MEAN), np.float32(IMAGENET_STD)
  return (images.astype(jnp.float32) / 255 - mean) / std


def add_on_subset(
  x: jax.Array,
  branch: Callable,
  *,
  rate: float,
  groups: jax.Array,
  key: jax.Array | None,
) -> jax.Array:
  """Adds branch(x), where drop path computes the branch on a subset of crops alone.

  Of each group's c crops, max(int(c * (1 - rate)), 1) random ones go through the
  branch, scaled by c / kept to keep the expectation; the others skip it, and its cost.

  Args:
    x: [G*c, T, D] tokens, groups along the leading axis.
    branch: maps [crops, T, D] to the same shape.
    rate: drop path rate; 0 runs every crop.
    groups: [G] int32, their ids: what a group draws depends on its id and the key
      alone, not on the groups beside it.
    key: random key; unused at rate 0.
  """
  if not rate:
    return x + branch(x)
  crops = len(x) // len(groups)
  kept = max(int(crops * (1 - rate)), 1)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, groups)
  order = jax.vmap(lambda k: jax.random.uniform(k, (crops,)).argsort())(keys)
  subset = order[:, :kept]  # [G, kept]
  x = einops.rearrange(x, "(g c) t d -> g c t d", g=len(groups))
  chosen = jax.vmap(lambda crop, i: crop[i])(x, subset)  # [G, kept, T, D]
  delta = branch(einops.rearrange(chosen, "g k t d -> (g k) t d")) * (crops / kept)
  delta = einops.rearrange(delta, "(g k) t d -> g k t d", g=len(groups))
  x = jax.vmap(lambda crop, i, d: crop.at[i].add(d))(x, subset, delta)
  return einops.rearrange(x, "g c t d -> (g c) t d")


class LayerScale(nn.Module):
  """x * gamma, one gamma per channel."""

  init: float

  @nn.compact
  def __call__(self, x):
    """[..., D] -> [..., D] float32."""
    shape = (x.shape[-1],)
    return x * self.param("gamma", nn.initializers.constant(self.init), shape)


class Attention(nn.Module):
  """Multi-head self-attention over all tokens of a crop; softmax in float32."""

  heads: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    """[B, T, D] -> [B, T, D]."""
    dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_dense_init)
    qkv = dense(3 * x.shape[-1], name="qkv")(x)
    qkv = einops.rearrange(qkv, "b t (s h d) -> s b t h d", s=3, h=self.heads)
    out = jax.nn.dot_product_attention(*qkv)  # [B, T, heads, D / heads]
    out = einops.rearrange(out, "b t h d -> b t (h d)")
    return dense(x.shape[-1], name="proj")(out)


class Mlp(nn.Module):
  """Two linears around an exact GELU, four times as wide as the tokens."""

  dtype: str

  @nn.compact
  def __call__(self, x):
    """[..., D] -> [..., D]."""
    dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_dense_init)
    hidden = jax.nn.gelu(dense(4 * x.shape[-1], name="fc1")(x), approximate=False)
    return dense(x.shape[-1], name="fc2")(hidden)


class SwiGLU(nn.Module):
  """Gated FFN (arXiv:2002.05202): w3(silu(a) * b), where w12 packs a and b."""

  dtype: str

  @nn.compact
  def __call__(self, x):
    """[..., D] -> [..., D]. Width: two thirds of 4D, rounded up to a multiple of 8."""
    width = (int(4 * x.shape[-1] * 2 / 3) + 7) // 8 * 8
    dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_dense_init)
    gate, value = jnp.split(dense(2 * width, name="w12")(x), 2, axis=-1)
    return dense(x.shape[-1], name="w3")(jax.nn.silu(gate) * value)


class Block(nn.Module):
  """x += LS1(attention(LN1 x)); x += LS2(FFN(LN2 x)), for each resolution in turn."""

  heads: int
  ffn: str
  layerscale_init: float
  drop_path: float
  dtype: str

  @nn.compact
  def __call__(self, tokens, groups):
    """Tuple of [B_i, T_i, D] float32 -> the same, and nothing for scan to stack."""
    norm = functools.partial(nn.LayerNorm, epsilon=LN_EPS, dtype=self.dtype)
    ffn = {"mlp": Mlp, "swiglu": SwiGLU}[self.ffn]
    norm1, norm2 = norm(name="norm1"), norm(name="norm2")
    attention = Attention(self.heads, self.dtype, name="attn")
    feed_forward = ffn(self.dtype, name="mlp")
    scale1 = LayerScale(self.layerscale_init, name="ls1")
    scale2 = LayerScale(self.layerscale_init, name="ls2")

    def residual(x, branch):
      key = self.make_rng("drop_path") if self.drop_path else None
      x = add_on_subset(x, branch, rate=self.drop_path, groups=groups, key=key)
      return sharding.constrain_batch(x)

    outputs = []
    for x in tokens:
      x = residual(x, lambda y: scale1(attention(norm1(y))))
      x = residual(x, lambda y: scale2(feed_forward(norm2(y))))
      outputs.append(x)
    return tuple(outputs), None


class VisionTransformer(nn.Module):
  """ViT of DINOv2 (arXiv:2304.07193). Fields are those of `config.backbone`.

  patch_size: pixels. pos_grid: M, patches along a side of the position embedding.
  width: D. ffn: "mlp" or "swiglu". registers: extra tokens after CLS
  (arXiv:2309.16588). pool: image feature, "gap" (mean of the patch tokens) or "cls".
  drop_path: rate in every block, while training. remat: recompute blocks when going
  backward.
  """

  patch_size: int
  pos_grid: int
  width: int
  depth: int
  heads: int
  ffn: str
  registers: int
  pool: str
  drop_path: float
  layerscale_init: float
  dtype: str
  remat: bool

  @nn.compact
  def __call__(
    self,
    crops: Sequence[jax.Array],
    masks: Sequence[jax.Array | None],
    *,
    groups: jax.Array | Sequence[int] = (0,),
    train: bool = False,
  ) -> list[Features]:
    """Runs crops of one or more resolutions through the same blocks.

    Args:
      crops: each [B_i, H_i, W_i, 3] float32, normalised.
      masks: each [B_i, N_i] bool, True where the mask token hides the patch, or None.
      groups: [G] int32, ids of the equal parts of each batch that drop path draws its
        subsets in.
      train: draws drop path from the "drop_path" rng.
    """
    tokens = self._embed(crops, masks)
    block = nn.remat(Block, prevent_cse=False) if self.remat else Block
    blocks = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True, "drop_path": True},
      in_axes=nn.broadcast,
      length=self.depth,
    )(
      heads=self.heads,
      ffn=self.ffn,
      layerscale_init=self.layerscale_init,
      drop_path=self.drop_path if train else 0.0,
      dtype=self.dtype,
      name="blocks",
    )
    tokens, _ = blocks(tokens, jnp.asarray(groups))
    norm = nn.LayerNorm(epsilon=LN_EPS, name="norm")
    outputs = []
    for x in tokens:
      x = norm(x)
      cls, patches = x[:, 0], x[:, 1 + self.registers :]
      image = {"gap": patches.mean(1), "cls": cls}[self.pool]
      outputs.append(Features(image=image, cls=cls, patches=patches))
    return outputs

  def _embed(self, crops, masks):
    """Crops to tokens: patches, masking, CLS, positions, registers, in this order."""
    normal = nn.initializers.normal
    mask_token = self.param("mask_token", nn.initializers.zeros, (1, self.width))
    cls_token = self.param("cls_token", normal(1e-6), (1, 1, self.width))
    shape = (1, 1 + self.pos_grid**2, self.width)
    pos_embed = self.param("pos_embed", normal(0.02), shape)[0]
    if self.registers:
      shape = (1, self.registers, self.width)
      registers = self.param("register_tokens", normal(1e-6), shape)
    fan_in_bound = (3 * self.patch_size**2) ** -0.5  # PyTorch's default for a Conv2d
    patch_embed = nn.Dense(
      self.width,
      dtype=self.dtype,
      kernel_init=uniform(fan_in_bound),
      bias_init=uniform(fan_in_bound),
      name="patch_embed",
    )
    tokens = []
    for images, mask in zip(crops, masks, strict=True):
      p = self.patch_size
      height, width = images.shape[1] // p, images.shape[2] // p
      patches = einops.rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p)
      x = patch_embed(patches).astype(jnp.float32)  # [B, N, D]
      if mask is not None:
        x = jnp.where(mask[..., None], mask_token, x)
      x += positions.resize(pos_embed[1:], height, width, antialias=self.registers > 0)
      prefix = [cls_token + pos_embed[0]] + ([registers] if self.registers else [])
      prefix = [jnp.broadcast_to(t, (len(x), *t.shape[1:])) for t in prefix]
      x = jnp.concatenate([*prefix, x], axis=1)  # [B, 1 + registers + N, D]
      tokens.append(sharding.constrain_batch(x))
    return tuple(tokens)
