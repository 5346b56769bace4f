"""Self-attention for TPU: a Pallas kernel that keeps a head's scores on the chip.

Crops are short (257 and 50 tokens), so all scores of a head fit the chip's vector
memory. The tiling of flash-attention kernels for long sequences gains nothing here, and
pads to 384. One program takes two heads of one crop: side by side, their 64 channels
fill the 128 lanes of a register. The kernel reads them from the packed output of the
qkv projection and writes them in the layout of the next projection. There are no
transposes, and no [T, T] array in main memory, where XLA's own attention spends its
time.

Scores are kept as [keys, queries]: sums over keys run along sublanes, and the gradients
of keys and values need no transposed operand. The backward kernel recomputes the
probabilities from queries, keys and the logarithm of their sums.

By the compiler's schedule for v5e, in million cycles for 32 crops x 24 heads of 257
tokens (tests/bench/attention_tpu.py): forward 0.57, backward 0.93; XLA's attention with
the changes of layout around it 14.2 for both, by the compiler's estimate.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dinojax import sharding

LANES = 128  # of a vector register
MAX_TOKENS = 512  # whose scores fit the vector memory, several times over
HEAD_WIDTH = 64  # two heads to a register; also makes the scale exact in bfloat16
SCALE = HEAD_WIDTH**-0.5

# Contracted axes of two operands, named as in BLAS: N for plain, T for transposed.
NN, NT, TN = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))


def fits(qkv: jax.Array, heads: int) -> bool:
  """Whether the kernel can run: heads of 64 channels, in pairs, and short crops."""
  _, tokens, width = qkv.shape
  return width == 3 * heads * HEAD_WIDTH and heads % 2 == 0 and tokens <= MAX_TOKENS


def block(crops: int, tokens: int) -> int:
  """Crops per program of the kernel: several if they are short, else one."""
  size = max(1, 256 // tokens)
  while crops % size:
    size -= 1
  return size


def attention(qkv: jax.Array, *, interpret: bool = False) -> jax.Array:
  """Attention of every head of every crop; each device computes its own crops.

  Args:
    qkv: [B, T, 3 * D], queries, keys and values, heads of 64 channels side by side; D a
      multiple of 128.
    interpret: runs the kernel's operations on any platform, slowly.

  Returns:
    [B, T, D], in the type of `qkv`.
  """
  return _attention(interpret, qkv)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(interpret, qkv):
  return _forward(interpret, qkv)[0]


def _forward(interpret, qkv):
  forward = functools.partial(_call, _forward_kernel, "forward", interpret)
  out, logsumexp = sharding.per_device(forward)(qkv)
  # Named for activation checkpointing (remat): if saved, the kernel runs only once.
  return out, (qkv, checkpoint_name(logsumexp, "attention"))


def _backward(interpret, residuals, grad):
  qkv, logsumexp = residuals
  backward = functools.partial(_call, _backward_kernel, "backward", interpret)
  grads = sharding.per_device(backward)(qkv, grad, logsumexp)
  return (jnp.concatenate(grads, axis=-1),)


_attention.defvjp(_forward, _backward)


def _call(kernel, name, interpret, qkv, *gradients):
  """Runs a kernel over crops and pairs of heads."""
  # Here, since their import takes a tenth of a second, which others need not wait for.
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import tpu as pltpu

  crops, tokens, width = qkv.shape
  pairs = width // 3 // LANES
  size = block(crops, tokens)

  def spec(part):  # two heads of the queries (0), keys (1) or values (2)
    return pl.BlockSpec(
      (size, tokens, LANES), lambda crop, pair: (crop, 0, part * pairs + pair)
    )

  tokens_shape = jax.ShapeDtypeStruct((crops, tokens, width // 3), qkv.dtype)
  sums = pl.BlockSpec((size, None, 2, tokens), lambda crop, pair: (crop, pair, 0, 0))
  sums_shape = jax.ShapeDtypeStruct((crops, pairs, 2, tokens), jnp.float32)
  products = 5 if gradients else 2
  return pl.pallas_call(
    kernel,
    grid=(crops // size, pairs),
    in_specs=[spec(0), spec(1), spec(2)] + ([spec(0), sums] if gradients else []),
    out_specs=[spec(0)] * 3 if gradients else [spec(0), sums],
    out_shape=[tokens_shape] * 3 if gradients else [tokens_shape, sums_shape],
    cost_estimate=pl.CostEstimate(
      flops=products * 2 * crops * tokens**2 * (width // 3),
      transcendentals=crops * 2 * pairs * tokens**2,
      bytes_accessed=(products + 3) * crops * tokens * (width // 3) * 2,
    ),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
    name=f"attention_{name}",
    interpret=interpret,
  )(qkv, qkv, qkv, *gradients)


def _dot(a, b, contract):
  return jax.lax.dot_general(
    a, b, (contract, ((), ())), preferred_element_type=jnp.float32
  )


def _heads():
  """For each head of a pair, [1, 128] True at its channels."""
  lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
  return lane < HEAD_WIDTH, lane >= HEAD_WIDTH


def _only(mine, x):
  """`x` with the other head's channels set to zero: its products are of one head."""
  return jnp.where(mine, x, jnp.zeros((), x.dtype))


def _forward_kernel(q_ref, k_ref, v_ref, out_ref, logsumexp_ref):
  for i in range(q_ref.shape[0]):
    q, k, v = q_ref[i] * jnp.array(SCALE, q_ref.dtype), k_ref[i], v_ref[i]
    out = 0
    for head, mine in enumerate(_heads()):
      scores = _dot(k, _only(mine, q), NT)  # [keys, queries]
      peak = scores.max(0, keepdims=True)
      p = jnp.exp(scores - peak)
      total = p.sum(0, keepdims=True)
      logsumexp_ref[i, head : head + 1, :] = peak + jnp.log(total)
      p = (p * (1 / total)).astype(v.dtype)
      out += _dot(p, _only(mine, v), TN)
    out_ref[i] = out.astype(out_ref.dtype)


def _backward_kernel(
  q_ref, k_ref, v_ref, grad_ref, logsumexp_ref, grad_q_ref, grad_k_ref, grad_v_ref
):
  for i in range(q_ref.shape[0]):
    q, k, v = q_ref[i] * jnp.array(SCALE, q_ref.dtype), k_ref[i], v_ref[i]
    grad = grad_ref[i]
    grad_q = grad_k = grad_v = 0
    for head, mine in enumerate(_heads()):
      my_q, my_grad = _only(mine, q), _only(mine, grad)
      scores = _dot(k, my_q, NT)  # [keys, queries]
      p = jnp.exp(scores - logsumexp_ref[i, head : head + 1, :])
      grad_v += _dot(p.astype(v.dtype), my_grad, NN)
      weighted = p * _dot(v, my_grad, NT)
      grad_scores = weighted - p * weighted.sum(0, keepdims=True)
      grad_scores = grad_scores.astype(q.dtype)
      grad_k += _dot(grad_scores, my_q, NN)
      grad_q += _dot(grad_scores, _only(mine, k), TN)
    grad_q_ref[i] = (grad_q * SCALE).astype(grad_q_ref.dtype)
    grad_k_ref[i] = grad_k.astype(grad_k_ref.dtype)
    grad_v_ref[i] = grad_v.astype(grad_v_ref.dtype)
