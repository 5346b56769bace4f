"""Self-attention over all tokens of a crop, by the platform's own kernel."""

import functools

import einops
import jax
from jax.ad_checkpoint import checkpoint_name

from dinojax import errors, sharding
from dinojax.networks import attention_cpu, attention_gpu, attention_tpu
from dinojax.reporting import console

KINDS = ("auto", "xla", "cpu", "cudnn", "pallas")


def attention(qkv: jax.Array, *, heads: int, kind: str) -> jax.Array:
  """softmax(q k^T / sqrt(d)) v of each head; softmax in float32.

  The result is named "attention" for activation checkpointing; what cuDNN's kernel
  returns is kept by `attention_gpu.keep`.

  Args:
    qkv: [B, T, 3 * D] queries, keys, values, each with its heads side by side.
    heads: number of heads; d = D / heads.
    kind: "xla" and "cpu" run anywhere; "cudnn" on NVIDIA, in bfloat16; "pallas" on TPU,
      with d = 64; "auto" takes the platform's own if it can do the job, else "xla".

  Returns:
    [B, T, D], in the type of `qkv`.

  Raises:
    UserError: "cudnn" cannot do the job.
  """
  if kind == "auto":
    kind = _of_platform(qkv, heads)
  elif kind == "cudnn":
    obstacle = attention_gpu.obstacle(qkv, heads, sharding.device_kind())
    if obstacle:
      raise errors.UserError(
        f"config.attention=cudnn cannot run ({obstacle}); use auto"
      )
  if kind == "cudnn":
    return attention_gpu.attention(qkv, heads=heads)
  if kind == "cpu":
    return attention_cpu.attention(qkv, heads=heads)
  if kind == "pallas":
    out = attention_tpu.attention(qkv)
  else:
    q, k, v = einops.rearrange(qkv, "b t (s h d) -> s b t h d", s=3, h=heads)
    out = jax.nn.dot_product_attention(q, k, v, implementation="xla")
    out = einops.rearrange(out, "b t h d -> b t (h d)")
  return checkpoint_name(out, "attention")


def _of_platform(qkv: jax.Array, heads: int) -> str:
  platform = sharding.platform()
  if platform == "tpu" and attention_tpu.fits(qkv, heads):
    return "pallas"
  if platform == "gpu":
    obstacle = attention_gpu.obstacle(qkv, heads, sharding.device_kind())
    if obstacle is None:
      return "cudnn"
    _report(obstacle)
  return "cpu" if platform == "cpu" else "xla"


@functools.cache
def _report(obstacle: str) -> None:
  """Prints why a GPU runs the plain path, once per process."""
  console.say(f"attention runs XLA's own operations, which are slower: {obstacle}")
