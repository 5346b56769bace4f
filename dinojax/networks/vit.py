"""VisionTransformer: crops to patches, tokens, blocks (blocks.py) and features.

One call takes crops of several resolutions, each as its own batch. A single scan over
the blocks carries all of them: a layer's weights are gathered once per pass, and
attention needs no mask. The residual stream is float32: LayerScale starts at 1e-5, and
bfloat16 would round away a branch that small. Matrix products run in `dtype`.
"""

from collections.abc import Callable, Sequence

import chex
import einops
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dinojax import sharding
from dinojax.networks import blocks, positions, rope

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Types of images, and the value that means 1 unless `max_value` says another.
MAX_VALUES = {"uint8": 255, "uint16": 65_535, "float32": 1}


def uniform(bound: float) -> Callable:
  """Initialiser: uniform within +-bound."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


@flax.struct.dataclass
class Features:
  """Features of a batch of crops, after the final LayerNorm, float32.

  image: [B, D], the image feature, as `pool` says. cls: [B, D], the CLS token. patches:
  [B, N, D], the patch tokens. cls_by_block, gap_by_block: [depth, B, D], CLS token and
  mean patch token of every block, after the final LayerNorm; only with `by_block`.
  """

  image: jax.Array
  cls: jax.Array
  patches: jax.Array
  cls_by_block: jax.Array | None = None
  gap_by_block: jax.Array | None = None


def normalize(
  images: jax.Array,
  *,
  mean: Sequence[float] = IMAGENET_MEAN,
  std: Sequence[float] = IMAGENET_STD,
  max_value: float = 0.0,
) -> jax.Array:
  """Images [..., C] of a type of MAX_VALUES to float32 of about zero mean.

  Args:
    images: values as stored.
    mean: of the channels, where `max_value` is 1.
    std: likewise, their deviation.
    max_value: the value that means 1; 0: as in MAX_VALUES.
  """
  most = max_value or MAX_VALUES[images.dtype.name]
  return (images.astype(jnp.float32) / most - np.float32(mean)) / np.float32(std)


class TappedBlock(blocks.Block):
  """A block, with the same parameters, that also returns features for evaluation."""

  first_patch: int

  @nn.compact
  def __call__(self, tokens, groups):
    """Returns the tokens, and for each resolution two vectors per crop, [2, B_i, D].

    These are the CLS token and the mean patch token after a LayerNorm without scale and
    bias, which are applied later: they commute with the mean.
    """
    tokens, _ = super().__call__(tokens, groups)
    norm = nn.LayerNorm(epsilon=self.norm_eps, use_bias=False, use_scale=False)
    taps = []
    for x in map(norm, tokens):
      pair = x[:, 0], x[:, self.first_patch :].mean(1)
      # No jnp.stack, which jax2onnx does not know.
      taps.append(jnp.concatenate([one[None] for one in pair]))  # [2, B, D]
    return tokens, taps


class VisionTransformer(nn.Module):
  """ViT of DINOv2 (arXiv:2304.07193) and DINOv3. Fields are those of `config.backbone`.

  patch_size: pixels. pos_grid: M, patches along a side of the position embeddings; with
  "rope", of the images that the weights are meant for. width: D. ffn: "mlp" or
  "swiglu". registers: number of register tokens, after CLS (arXiv:2309.16588). pool:
  image feature, "gap" (mean of the patch tokens) or "cls". drop_path: rate in every
  block, in training. layerscale_init: LayerScale's first gamma. remat: activation
  checkpointing, a key of `blocks.REMAT`. unroll: blocks per iteration of the scan.
  attention: one of `attention.KINDS`.

  What DINOv3 changed, with DINOv2's values: positions: "learned", or "rope" (rope.py).
  ffn_width: hidden channels of the FFN; 0: 4D, and two thirds of that if gated.
  norm_eps: of every LayerNorm. qkv_bias: a key of `blocks.BIASED`. local_norm: whether
  the CLS token of local crops has a final LayerNorm of its own, in training.
  rope_*: of `rope.Rope`, the first three in training alone.

  image_dtype, max_value, mean, std: type of images, and how `normalize` scales them;
  there are as many channels as means.
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
  remat: str
  unroll: int
  attention: str
  positions: str = "learned"
  ffn_width: int = 0
  norm_eps: float = 1e-6
  qkv_bias: str = "all"
  local_norm: bool = False
  rope_shift: float = 0.0
  rope_jitter: float = 1.0
  rope_rescale: float = 1.0
  rope_periods: str = "float32"
  mean: tuple[float, ...] = IMAGENET_MEAN
  std: tuple[float, ...] = IMAGENET_STD
  image_dtype: str = "uint8"
  max_value: float = 0.0

  @nn.compact
  def __call__(
    self,
    crops: Sequence[jax.Array],
    masks: Sequence[jax.Array | None],
    *,
    groups: jax.Array | Sequence[int] = (0,),
    train: bool = False,
    by_block: bool = False,
  ) -> list[Features]:
    """Features of crops of one or more resolutions, each as its own batch.

    Args:
      crops: each [B_i, H_i, W_i, C] float32, normalised.
      masks: each [B_i, N_i] bool, True where the mask token hides the patch, or None.
      groups: [G] int32, ids of the groups, equal slices of each batch in which drop
        path draws its subsets.
      train: applies drop path and moves the patches of "rope", drawn from the rngs
        "drop_path" and "rope", and takes all crops but the first for local ones.
      by_block: also returns the features of every block.
    """
    tokens = self._embed(crops, masks)
    first_patch = 1 + self.registers
    block, more = blocks.Block, {}
    if by_block:
      block, more = TappedBlock, {"first_patch": first_patch}
    if (names := blocks.REMAT[self.remat]) is not None:
      block = nn.remat(block, prevent_cse=False, policy=blocks.keep(names))
    # Before the scan, Flax traces a block for broadcast outputs, of which it has none.
    # Where nothing is drawn, leaving it out changes nothing; else it moves the draws.
    turn = self.rotation(train)
    draws = self.is_initializing() or (train and self.drop_path > 0)
    draws = draws or (turn is not None and turn.augments)
    scan = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True, "drop_path": True, "rope": True},
      in_axes=nn.broadcast,
      length=self.depth,
      unroll=sharding.unroll(self.depth, self.unroll),
      check_constancy_invariants=draws,
    )(
      heads=self.heads,
      ffn=self.ffn,
      hidden=blocks.hidden_width(self.width, ffn=self.ffn, ffn_width=self.ffn_width),
      norm_eps=self.norm_eps,
      qkv_bias=self.qkv_bias,
      layerscale_init=self.layerscale_init,
      drop_path=self.drop_path if train else 0.0,
      dtype=self.dtype,
      attention=self.attention,
      rope=turn,
      grids=tuple(self.grid(x) for x in crops),
      **more,
      name="blocks",
    )
    tokens, taps = scan(tokens, jnp.asarray(groups))
    norm = nn.LayerNorm(epsilon=self.norm_eps, name="norm")
    local_norm = nn.LayerNorm(epsilon=self.norm_eps, name="local_norm")
    outputs = []
    for i, before in enumerate(tokens):
      x = norm(before)
      cls, patches = x[:, 0], x[:, first_patch:]
      if self.local_norm and (self.is_initializing() or (train and i > 0)):
        cls = local_norm(before[:, 0])
      image = {"gap": patches.mean(1), "cls": cls}[self.pool]
      seen = Features(image=image, cls=cls, patches=patches)
      if by_block:
        affine = norm.variables["params"]
        by = taps[i] * affine["scale"] + affine["bias"]  # [depth, 2, B, D]
        seen = seen.replace(cls_by_block=by[:, 0], gap_by_block=by[:, 1])
      outputs.append(seen)
    return outputs

  def _embed(self, crops, masks):
    """Crops to tokens: patches, mask, CLS, position embeddings, registers, in order."""
    normal = nn.initializers.normal
    mask_token = self.param("mask_token", nn.initializers.zeros, (1, self.width))
    learned = self.positions == "learned"
    spread = 1e-6 if learned else 0.02
    cls_token = self.param("cls_token", normal(spread), (1, 1, self.width))
    if learned:
      shape = (1, 1 + self.pos_grid**2, self.width)
      pos_embed = self.param("pos_embed", normal(0.02), shape)[0]
      cls_token = cls_token + pos_embed[0]  # NumPy weights stay as they are
    if self.registers:
      shape = (1, self.registers, self.width)
      registers = self.param("register_tokens", normal(spread), shape)
    fan_in = len(self.mean) * self.patch_size**2
    fan_in_bound = fan_in**-0.5  # PyTorch's default for a Conv2d
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
      patches = einops.rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p)
      x = patch_embed(patches).astype(jnp.float32)  # [B, N, D]
      if mask is not None:
        x = jnp.where(mask[..., None], mask_token, x)
      if learned:
        grid = self.grid(images)
        x += positions.resize(pos_embed[1:], *grid, antialias=self.registers > 0)
      prefix = [cls_token] + ([registers] if self.registers else [])
      prefix = [jnp.broadcast_to(t, (x.shape[0], *t.shape[1:])) for t in prefix]
      x = jnp.concatenate([*prefix, x], axis=1)  # [B, 1 + registers + N, D]
      tokens.append(sharding.constrain_batch(x))
    return tuple(tokens)

  @nn.nowrap
  def normalize(self, images: jax.Array) -> jax.Array:
    """Images [..., C] of `image_dtype` as the network sees them, float32."""
    chex.assert_type(images, self.image_dtype)
    how = dict(mean=self.mean, std=self.std, max_value=self.max_value)
    return normalize(images, **how)

  @nn.nowrap
  def example(self) -> jax.Array:
    """A normalised black image of the weights' own size, [1, S, S, C]."""
    side = self.patch_size * self.pos_grid
    return jnp.zeros((1, side, side, len(self.mean)))

  def grid(self, images: jax.Array) -> tuple[int, int]:
    """Rows and columns of patches of images [B, H, W, C]."""
    return images.shape[1] // self.patch_size, images.shape[2] // self.patch_size

  def rotation(self, train: bool) -> rope.Rope | None:
    """How the blocks rotate patches; None with learned positions."""
    if self.positions == "learned":
      return None
    plain = rope.Rope(periods=self.rope_periods)
    if not train:
      return plain
    amounts = dict(shift=self.rope_shift, jitter=self.rope_jitter)
    return plain._replace(**amounts, rescale=self.rope_rescale)
