"""Self-attention for NVIDIA GPUs: cuDNN's kernel, for any number of tokens.

In training JAX refuses cuDNN's kernel where the number of tokens is odd, as 257 is. Odd
crops get one token more, and their lengths are passed on, so that the kernel leaves it
out. That costs no pass over memory of its own: queries, keys and values are copied out
of their packed array in any case.
"""

import functools
import re

import einops
import jax
import jax.numpy as jnp

from dinojax import sharding

WIDEST_HEAD = 128  # that cuDNN takes on every card from Ampere on
# Cards before Ampere by name, a list that does not grow; cuDNN's kernel needs Ampere.
BEFORE_AMPERE = re.compile(
  r"\b([KMPTV]\d|MX\d|GTX|RTX 20[678]0|TITAN|Tesla|Quadro|CMP)"
)


def obstacle(qkv: jax.Array, heads: int, device_kind: str) -> str | None:
  """Why the kernel cannot run, for a message; None if it can.

  Args:
    qkv: as of `attention`.
    heads: as of `attention`.
    device_kind: JAX's name of the card, such as "NVIDIA H100 80GB HBM3".
  """
  width = qkv.shape[-1] // (3 * heads)
  if not runs_on(device_kind):
    return (
      "cuDNN's kernel needs an NVIDIA card of the Ampere generation or newer, and this"
      f" is {device_kind}"
    )
  if qkv.dtype != jnp.bfloat16:
    return f"cuDNN's kernel computes in bfloat16, and this is {qkv.dtype}"
  if width > WIDEST_HEAD or width % 8:
    return (
      f"cuDNN's kernel needs heads of at most {WIDEST_HEAD} channels, a multiple of 8,"
      f" and these have {width}"
    )
  return None


def runs_on(device_kind: str) -> bool:
  """Whether this is an NVIDIA card of the Ampere generation or newer."""
  return device_kind.startswith("NVIDIA") and not BEFORE_AMPERE.search(device_kind)


def attention(
  qkv: jax.Array, *, heads: int, implementation: str = "cudnn"
) -> jax.Array:
  """Attention of every head of every crop; each device computes its own crops.

  Args:
    qkv: [B, T, 3 * D] queries, keys, values, each with its heads side by side.
    heads: number of heads.
    implementation: of `jax.nn.dot_product_attention`; "xla" runs anywhere.

  Returns:
    [B, T, D], in the type of `qkv`.
  """
  attend = functools.partial(_attend, heads, implementation)
  return sharding.per_device(attend)(qkv)


def keep(primitive, *_, **__) -> bool:
  """The policy of `jax.checkpoint` that keeps what the kernel returns.

  That is its output and the logarithms of its sums, which JAX gives no names. Without
  them the backward pass would run the kernel twice.
  """
  return primitive.name.startswith("dot_product_attention_fwd")


def _attend(heads, implementation, qkv):
  crops, tokens, _ = qkv.shape
  odd = tokens % 2
  padded = jnp.pad(qkv, ((0, 0), (0, odd), (0, 0)))
  q, k, v = einops.rearrange(padded, "b t (s h d) -> s b t h d", s=3, h=heads)
  lengths = jnp.full(crops, tokens, jnp.int32) if odd else None
  out = jax.nn.dot_product_attention(
    *(q, k, v),
    query_seq_lengths=lengths,
    key_value_seq_lengths=lengths,
    implementation=implementation,
  )
  return einops.rearrange(out[:, :tokens], "b t h d -> b t (h d)")
