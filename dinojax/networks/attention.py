"""Self-attention over all tokens of a crop, by the platform's own kernel."""

import einops
import jax

from dinojax import sharding
from dinojax.networks import attention_cpu, attention_tpu

KINDS = ("auto", "xla", "cpu", "cudnn", "pallas")


def attention(qkv: jax.Array, *, heads: int, kind: str) -> jax.Array:
  """softmax(q k^T / sqrt(d)) v of each head; softmax in float32.

  Args:
    qkv: [B, T, 3 * D] queries, keys, values, each with its heads side by side.
    heads: number of heads; d = D / heads.
    kind: "xla" and "cpu" run anywhere; "cudnn" on NVIDIA, in bfloat16; "pallas" on TPU,
      with d = 64; "auto" takes the platform's own if it can do the job, else "xla".

  Returns:
    [B, T, D], in the type of `qkv`.
  """
  if kind == "auto":
    kind = _of_platform(qkv, heads)
  if kind == "pallas":
    return attention_tpu.attention(qkv)
  if kind == "cpu":
    return attention_cpu.attention(qkv, heads=heads)
  q, k, v = einops.rearrange(qkv, "b t (s h d) -> s b t h d", s=3, h=heads)
  out = jax.nn.dot_product_attention(q, k, v, implementation=kind)
  return einops.rearrange(out, "b t h d -> b t (h d)")


def _of_platform(qkv: jax.Array, heads: int) -> str:
  platform = sharding.platform()
  if platform == "tpu" and attention_tpu.fits(qkv, heads):
    return "pallas"
  if platform == "gpu" and qkv.dtype == "bfloat16":
    return "cudnn"
  return "cpu" if platform == "cpu" else "xla"
