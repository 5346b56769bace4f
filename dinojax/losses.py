"""Formulas of the losses: teacher targets, cross-entropy, KoLeo. All in float32.

Functions of arrays alone: no networks, crops or devices. Rows may be sharded; the
compiler then adds up the sums over them.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp

TINY = jnp.finfo(jnp.float32).tiny
CENTER_MOMENTUM = 0.9  # of the "centering" targets, arXiv:2104.14294


def assign(
  logits: jax.Array, center: jax.Array | None, *, temp: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
  """Teacher targets of the whole batch, and the center of the next one.

  Args:
    logits: [..., K], of the teacher.
    center: [K], of the "centering" targets; None: Sinkhorn's.
    temp: teacher temperature.
  """
  if center is None:
    flat = logits.reshape(-1, logits.shape[-1])
    return sinkhorn_knopp(flat, temp=temp).reshape(logits.shape), None
  mean = logits.mean(range(logits.ndim - 1))
  targets = centered_softmax(logits, center, temp=temp)
  return targets, CENTER_MOMENTUM * center + (1 - CENTER_MOMENTUM) * mean


def sinkhorn_knopp(
  logits: jax.Array, *, temp: jax.Array | float, iterations: int = 3
) -> jax.Array:
  """Teacher targets that use all prototypes equally over the batch.

  Each iteration divides by the prototypes' sums over all samples, then by the samples'
  sums. Both are scalings of rows and columns, so only two vectors change and the
  [rows, K] array is written once.

  Args:
    logits: [rows, K], of the teacher; all the samples of the global batch.
    temp: teacher temperature.
    iterations: 3 in DINOv2.

  Returns:
    [rows, K] float32, each row summing to one. Source: SwAV (arXiv:2006.09882), A.1.
  """
  chex.assert_rank(logits, 2)
  z = logits.astype(jnp.float32)
  # exp((z - max of all) / temp), in two factors: by its row's own maximum no row
  # underflows as a whole, and what that shift changes stands in `per_sample`.
  peak = jax.lax.stop_gradient(z.max(1))  # [rows]
  scores = jnp.exp((z - peak[:, None]) / temp)  # [rows, K]
  # Full precision: by default TPU and GPU round the factors to 8 or 11 bits.
  dot = functools.partial(jnp.dot, precision="highest")
  samples, prototypes = z.shape
  share = samples / prototypes  # sum of a prototype; with 1, the vectors would drift
  per_sample = jnp.exp((peak - peak.max()) / temp)
  for _ in range(iterations):
    per_prototype = share / jnp.maximum(dot(per_sample, scores), TINY)  # [K]
    per_sample = 1 / jnp.maximum(dot(scores, per_prototype), TINY)  # [rows]
  return scores * per_sample[:, None] * per_prototype


def centered_softmax(
  logits: jax.Array, center: jax.Array, *, temp: jax.Array | float
) -> jax.Array:
  """Teacher targets of DINO (arXiv:2104.14294): softmax((z - center) / temp).

  Args:
    logits: [..., K], of the teacher.
    center: [K], EMA of the mean teacher logits of earlier batches.
    temp: teacher temperature.

  Returns:
    [..., K] float32, last axis summing to one.
  """
  return jax.nn.softmax((logits.astype(jnp.float32) - center) / temp)


def cross_entropy(
  logits: jax.Array, targets: jax.Array, *, temp: jax.Array | float
) -> jax.Array:
  """-sum_k targets_k log softmax(logits / temp)_k, without a [..., K] log-softmax.

  Args:
    logits: [..., K], of the student.
    targets: [..., K], not necessarily summing to one.
    temp: student temperature.

  Returns:
    [...] float32, nats.
  """
  chex.assert_equal_shape_suffix((logits, targets), 1)
  z = logits.astype(jnp.float32) / temp
  return targets.sum(-1) * jax.nn.logsumexp(z, -1) - (targets * z).sum(-1)


def entropy(targets: jax.Array) -> jax.Array:
  """Mean entropy of targets [..., K], in nats, []."""
  return jax.scipy.special.entr(targets).sum(-1).mean()


def cosine_distance(x: jax.Array, y: jax.Array, *, eps: float = 1e-8) -> jax.Array:
  """1 - cosine of the rows of two [..., D], [...] float32. eps: the least length."""
  chex.assert_equal_shape((x, y))
  x, y = (v.astype(jnp.float32) for v in (x, y))
  lengths = (jnp.sqrt(jnp.maximum(jnp.square(v).sum(-1), eps**2)) for v in (x, y))
  return 1 - (x * y).sum(-1) / functools.reduce(jnp.multiply, lengths)


def koleo(features: jax.Array, *, eps: float = 1e-8) -> jax.Array:
  """Kozachenko-Leonenko spread of features within each group (arXiv:1806.03198).

  Args:
    features: [G, g, D]; neighbours are looked for among the g rows of a group.
    eps: guards the logarithm, and the norm's gradient where two rows are equal.

  Returns:
    [] float32: mean of -log(distance to the nearest neighbour + eps).
  """
  chex.assert_rank(features, 3)
  x = features.astype(jnp.float32)  # half precision gives infinities here
  x = x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), eps**2))
  # Full precision: on TPU the default rounds inputs to bfloat16, and near ties flip.
  similarity = jnp.einsum("gid,gjd->gij", x, x, precision="highest")  # [G, g, g]
  similarity = jnp.where(jnp.eye(x.shape[1], dtype=bool), -jnp.inf, similarity)
  nearest = jax.lax.stop_gradient(similarity.argmax(-1))  # [G, g]
  neighbours = jnp.take_along_axis(x, nearest[..., None], axis=1)  # [G, g, D]
  distance = jnp.sqrt(jnp.square(x - neighbours + eps).sum(-1))
  return -jnp.log(distance + eps).mean()


def nothing_learnt(*, dino_prototypes: int, ibot_prototypes: int) -> float:
  """DINO + iBOT loss of a student whose predictions are uniform.

  ln K for DINO; half of it for iBOT, as half of the crops hide nothing and count 0.
  """
  return math.log(dino_prototypes) + math.log(ibot_prototypes) / 2
