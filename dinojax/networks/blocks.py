"""Transformer blocks: attention, FFN, drop path (stochastic depth) on subsets of crops.

Written for memory and speed: what the backward pass needs is small, in `dtype`, and
named for activation checkpointing (`REMAT`); dropped crops are not computed.
"""

import functools
from collections.abc import Callable, Sequence

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dinojax import sharding
from dinojax.networks import attention, attention_gpu, layers, rope

# Which of queries, keys and values have a bias, by `qkv_bias`.
BIASED = {
  "all": (True, True, True),
  "no_key": (True, False, True),
  "none": (False, False, False),
}

# Activation checkpointing (remat): the activations of a block that are kept for the
# backward pass, besides the block's input. It recomputes the others. None keeps all;
# from top to bottom, less memory and more work.
REMAT = {
  "none": None,
  "matmuls": ("qkv", "attention", "proj", "ffn"),  # recomputes no matrix product
  "attention": ("qkv", "attention", "proj"),  # recomputes the first layer of the FFN
  "full": (),
}


def keep(names: Sequence[str]) -> Callable[..., bool]:
  """The policy of `jax.checkpoint` that keeps the activations of these names."""
  policies = jax.checkpoint_policies
  policy = policies.save_only_these_names(*names)
  if "attention" in names:
    policy = policies.save_from_both_policies(policy, attention_gpu.keep)
  return policy


def swiglu_width(width: int) -> int:
  """Hidden channels of a SwiGLU: two thirds of 4D, rounded up to a multiple of 8."""
  return (int(4 * width * 2 / 3) + 7) // 8 * 8


def hidden_width(width: int, *, ffn: str, ffn_width: int) -> int:
  """Hidden channels of an FFN: `ffn_width`, or what is usual where that is 0."""
  return ffn_width or {"mlp": 4 * width, "swiglu": swiglu_width(width)}[ffn]


def kept_crops(crops: int, rate: float) -> int:
  """How many of a group's crops drop path keeps: 1 - rate of them, and at least one."""
  return max(int(crops * (1 - rate)), 1)


def draw(key: jax.Array, groups: jax.Array, crops: int, *, rate: float) -> jax.Array:
  """Draws the crops of each group that drop path keeps for a branch.

  They are `kept_crops` random ones. The others skip the branch, and its cost.

  Args:
    key: random key.
    groups: [G] int32, ids of the groups. A group's draw depends on its id and the key
      alone, not on the groups beside it.
    crops: number of crops in each group.
    rate: drop path rate.

  Returns:
    Indices [G, kept] within the groups.
  """
  kept = kept_crops(crops, rate)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, groups)
  order = jax.vmap(lambda k: jax.random.uniform(k, (crops,)).argsort())(keys)
  return order[:, :kept]


@jax.custom_vjp
def choose(x: jax.Array, chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns all crops and the chosen ones.

  Callers use the returned `x` from here on: the backward pass then adds the gradient of
  the chosen crops in place, and needs one array less.

  Args:
    x: [G*c, T, D] tokens, groups along the leading axis.
    chosen: [G, kept], of `draw`.

  Returns:
    x, and its crops [G*kept, T, D].
  """
  grouped = einops.rearrange(x, "(g c) t d -> g c t d", g=len(chosen))
  seen = jax.vmap(lambda crop, i: crop[i])(grouped, chosen)
  return x, einops.rearrange(seen, "g k t d -> (g k) t d")


def _choose_backward(chosen, grads):
  return _add_at(*grads, chosen), None


choose.defvjp(lambda x, chosen: (choose(x, chosen), chosen), _choose_backward)


def _add_at(x, delta, chosen):
  """Adds [G*kept, T, D] at the chosen crops of [G*c, T, D]."""
  x = einops.rearrange(x, "(g c) t d -> g c t d", g=len(chosen))
  delta = einops.rearrange(delta, "(g k) t d -> g k t d", g=len(chosen))
  x = jax.vmap(lambda x, i, d: x.at[i].add(d, unique_indices=True))(x, chosen, delta)
  return einops.rearrange(x, "g c t d -> (g c) t d")


def add_on_chosen(x: jax.Array, delta: jax.Array, chosen: jax.Array) -> jax.Array:
  """Adds a branch of the chosen crops, scaled so that its expectation stays the same.

  Args:
    x: [G*c, T, D] tokens.
    delta: [G*kept, T, D], output of the branch for the chosen crops.
    chosen: [G, kept], of `draw`.
  """
  groups, kept = chosen.shape
  # The factor is float32: bfloat16 would round it, a bias that is the same everywhere.
  scaled = delta * jnp.float32(len(x) // groups / kept)
  return _add_at(x, scaled.astype(delta.dtype), chosen)


class Attention(nn.Module):
  """Multi-head self-attention over all tokens of a crop; softmax in float32."""

  heads: int
  dtype: str
  kernel: str
  qkv_bias: str

  @nn.compact
  def __call__(self, xs, gamma, *, rotate):
    """[B_i, T_i, D] each, [D] -> [B_i, T_i, D] each, scaled by gamma.

    rotate: for each of `xs`, what rotates its queries and keys.
    """
    width = len(gamma)
    outputs = []
    dense = layers.Dense(
      3 * width, self.dtype, biased=BIASED[self.qkv_bias], name="qkv"
    )
    for (qkv,), turn in zip(dense(xs), rotate, strict=True):
      qkv = checkpoint_name(turn(qkv), "qkv")
      outputs.append(attention.attention(qkv, heads=self.heads, kind=self.kernel))
    projected = layers.Dense(width, self.dtype, name="proj")(outputs, gamma)
    return [checkpoint_name(x, "proj") for (x,) in projected]


class Mlp(nn.Module):
  """Two linears around an exact GELU. hidden: channels between them."""

  hidden: int
  dtype: str

  @nn.compact
  def __call__(self, xs, gamma):
    """[B_i, T_i, D] each, [D] -> [B_i, T_i, D] each, scaled by gamma."""
    width = len(gamma)
    hidden = [
      layers.gelu(checkpoint_name(x, "ffn"))
      for (x,) in layers.Dense(self.hidden, self.dtype, name="fc1")(xs)
    ]
    return [x for (x,) in layers.Dense(width, self.dtype, name="fc2")(hidden, gamma)]


class SwiGLU(nn.Module):
  """Gated FFN (arXiv:2002.05202): w3(silu(a) * b), where w12 packs a and b.

  hidden: channels of a, and of b.
  """

  hidden: int
  dtype: str

  @nn.compact
  def __call__(self, xs, gamma):
    """[B_i, T_i, D] each, [D] -> [B_i, T_i, D] each, scaled by gamma."""
    width = len(gamma)
    # Split in the weights: split in the output, its gradient would be joined again.
    packed = layers.Dense(2 * self.hidden, self.dtype, parts=2, name="w12")(xs)
    # A barrier, or XLA fuses half of this product into the next one and recomputes it.
    packed = jax.lax.optimization_barrier(checkpoint_name(packed, "ffn"))
    gated = [jax.nn.silu(gate) * value for gate, value in packed]
    return [x for (x,) in layers.Dense(width, self.dtype, name="w3")(gated, gamma)]


class Block(nn.Module):
  """x += LS1(attention(LN1 x)); x += LS2(FFN(LN2 x)), for all resolutions together.

  Fields are those of `config.backbone`, but for hidden: channels of the FFN. rope: how
  patches are rotated; None: not at all. grids: their rows and columns, by resolution.
  """

  heads: int
  ffn: str
  hidden: int
  norm_eps: float
  qkv_bias: str
  layerscale_init: float
  drop_path: float
  dtype: str
  attention: str
  rope: rope.Rope | None
  grids: tuple[tuple[int, int], ...]

  @nn.compact
  def __call__(self, tokens, groups):
    """Tuple of [B_i, T_i, D] float32 -> the same, and None: scan stacks nothing."""
    width = tokens[0].shape[-1]
    norm = functools.partial(nn.LayerNorm, epsilon=self.norm_eps, dtype=self.dtype)
    ffn = {"mlp": Mlp, "swiglu": SwiGLU}[self.ffn]
    attend = functools.partial(
      Attention(self.heads, self.dtype, self.attention, self.qkv_bias, name="attn"),
      rotate=[self._rotation(*grid) for grid in self.grids],
    )
    branches = (
      (
        norm(name="norm1"),
        attend,
        layers.LayerScale(width, self.layerscale_init, name="ls1"),
      ),
      (
        norm(name="norm2"),
        ffn(self.hidden, self.dtype, name="mlp"),
        layers.LayerScale(width, self.layerscale_init, name="ls2"),
      ),
    )
    for normalize, branch, scale in branches:
      if self.drop_path:
        sizes = [len(x) // len(groups) for x in tokens]
        keys = [self.make_rng("drop_path") for _ in tokens]
        pick = functools.partial(draw, rate=self.drop_path)
        chosen = [pick(k, groups, n) for k, n in zip(keys, sizes, strict=True)]
        tokens, seen = zip(*map(choose, tokens, chosen), strict=True)
        deltas = branch([normalize(x) for x in seen], scale())
        tokens = map(add_on_chosen, tokens, deltas, chosen)
      else:
        deltas = branch([normalize(x) for x in tokens], scale())
        tokens = [x + delta for x, delta in zip(tokens, deltas, strict=True)]
      tokens = [sharding.constrain_batch(x) for x in tokens]
    return tuple(tokens), None

  def _rotation(self, height: int, width: int) -> Callable[[jax.Array], jax.Array]:
    """What rotates the queries and keys of crops of so many patches."""
    if self.rope is None:
      return lambda qkv: qkv
    key = self.make_rng("rope") if self.rope.augments else None
    places = self.rope.places(key, height, width)
    return functools.partial(self.rope.rotate, places=places, heads=self.heads)
