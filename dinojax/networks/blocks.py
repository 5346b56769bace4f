"""Transformer blocks: attention, FFN, drop path on subsets of the crops.

Each is written for what it costs: what the backward pass needs is small, named for
`REMAT`, and in `dtype`; skipped crops are not computed.
"""

import functools

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dinojax import sharding
from dinojax.networks import attention, layers

LN_EPS = 1e-6

# What the backward pass finds in memory of each block besides its input; the rest it
# computes again. None keeps everything; from top to bottom, less memory and more work.
REMAT = {
  "none": None,
  "matmuls": ("qkv", "attention", "proj", "ffn"),  # no matrix product runs again
  "attention": ("qkv", "attention", "proj"),  # the first layer of the FFN does
  "full": (),
}


def draw(key: jax.Array, groups: jax.Array, crops: int, *, rate: float) -> jax.Array:
  """Which crops of each group drop path lets through a branch.

  Of a group's crops they are max(int(crops * (1 - rate)), 1) random ones. The others
  skip the branch, and its cost.

  Args:
    key: random key.
    groups: [G] int32, their ids: what a group draws depends on its id and the key
      alone, not on the groups beside it.
    crops: of each group.
    rate: drop path rate.

  Returns:
    Positions [G, kept] within the groups.
  """
  kept = max(int(crops * (1 - rate)), 1)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, groups)
  order = jax.vmap(lambda k: jax.random.uniform(k, (crops,)).argsort())(keys)
  return order[:, :kept]


@jax.custom_vjp
def choose(x: jax.Array, chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The chosen crops, beside all of them.

  Whoever goes on with the `x` that is returned spares the backward pass an array: the
  gradient of the chosen crops is added into that of all.

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
  """Adds a branch of the chosen crops, scaled up to keep its expectation over draws.

  Args:
    x: [G*c, T, D] tokens.
    delta: [G*kept, T, D], the branch of these crops.
    chosen: [G, kept], of `draw`.
  """
  groups, kept = chosen.shape
  # By a factor in float32: bfloat16 would round it, and so shift all alike.
  scaled = delta * jnp.float32(len(x) // groups / kept)
  return _add_at(x, scaled.astype(delta.dtype), chosen)


class Attention(nn.Module):
  """Multi-head self-attention over all tokens of a crop; softmax in float32."""

  heads: int
  dtype: str
  kernel: str

  @nn.compact
  def __call__(self, xs, gamma):
    """[B_i, T_i, D] each, [D] -> [B_i, T_i, D] each, scaled by gamma."""
    width = len(gamma)
    outputs = []
    for (qkv,) in layers.Dense(3 * width, self.dtype, name="qkv")(xs):
      qkv = checkpoint_name(qkv, "qkv")
      out = attention.attention(qkv, heads=self.heads, kind=self.kernel)
      outputs.append(checkpoint_name(out, "attention"))
    projected = layers.Dense(width, self.dtype, name="proj")(outputs, gamma)
    return [checkpoint_name(x, "proj") for (x,) in projected]


class Mlp(nn.Module):
  """Two linears around an exact GELU, four times as wide as the tokens."""

  dtype: str

  @nn.compact
  def __call__(self, xs, gamma):
    """[B_i, T_i, D] each, [D] -> [B_i, T_i, D] each, scaled by gamma."""
    width = len(gamma)
    hidden = [
      layers.gelu(checkpoint_name(x, "ffn"))
      for (x,) in layers.Dense(4 * width, self.dtype, name="fc1")(xs)
    ]
    return [x for (x,) in layers.Dense(width, self.dtype, name="fc2")(hidden, gamma)]


class SwiGLU(nn.Module):
  """Gated FFN (arXiv:2002.05202): w3(silu(a) * b), where w12 packs a and b."""

  dtype: str

  @nn.compact
  def __call__(self, xs, gamma):
    """[B_i, T_i, D] each, [D] -> [B_i, T_i, D] each, scaled by gamma.

    Width: two thirds of 4D, rounded up to a multiple of 8.
    """
    width = len(gamma)
    hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
    # Split in the weights: split in the output, its gradient would be joined again.
    packed = layers.Dense(2 * hidden, self.dtype, parts=2, name="w12")(xs)
    # Held back: XLA would compute half of this product inside the next one, in pieces.
    packed = jax.lax.optimization_barrier(checkpoint_name(packed, "ffn"))
    gated = [jax.nn.silu(gate) * value for gate, value in packed]
    return [x for (x,) in layers.Dense(width, self.dtype, name="w3")(gated, gamma)]


class Block(nn.Module):
  """x += LS1(attention(LN1 x)); x += LS2(FFN(LN2 x)), for all resolutions together."""

  heads: int
  ffn: str
  layerscale_init: float
  drop_path: float
  dtype: str
  attention: str

  @nn.compact
  def __call__(self, tokens, groups):
    """Tuple of [B_i, T_i, D] float32 -> the same, and nothing for scan to stack."""
    width = tokens[0].shape[-1]
    norm = functools.partial(nn.LayerNorm, epsilon=LN_EPS, dtype=self.dtype)
    ffn = {"mlp": Mlp, "swiglu": SwiGLU}[self.ffn]
    attend = Attention(self.heads, self.dtype, self.attention, name="attn")
    branches = (
      (
        norm(name="norm1"),
        attend,
        layers.LayerScale(width, self.layerscale_init, name="ls1"),
      ),
      (
        norm(name="norm2"),
        ffn(self.dtype, name="mlp"),
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
