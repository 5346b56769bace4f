"""Votes of the nearest neighbours: right answers, counted on the whole mesh.

Dimension key of features.py, and Q queries, k neighbours, C classes.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dinojax import sharding
from dinojax.evals import features, search

QUERIES = 8192  # at a time, on all devices together


def lower(
  bank: features.Bank,
  queries: features.Bank,
  *,
  num_classes: int,
  ks: Sequence[int],
  temperature: float,
  mesh: Mesh,
) -> jax.stages.Lowered:
  """The program of `count_right` for banks of which only the shapes are known."""
  return count_right.lower(
    *(bank, queries, 0),
    together=together(queries),
    num_classes=num_classes,
    ks=tuple(sorted(ks)),
    temperature=temperature,
    mesh=mesh,
  )


def together(queries: features.Bank) -> int:
  """Batches of queries that are searched for at a time."""
  steps, batch = queries.labels.shape
  return min(steps, max(1, QUERIES // batch))


# Compiled once for all evaluations of a run. It indexes inside: outside of jit, no
# process could slice what others hold.
@functools.partial(jax.jit, static_argnames=("together", "num_classes", "ks", "mesh"))
def count_right(bank, queries, step, *, together, num_classes, ks, temperature, mesh):
  """Right answers among the batches from `step` on: [2 (top-1, top-5), len(ks)]."""
  steps, batch = queries.labels.shape
  start = jnp.minimum(step, steps - together)
  x, own_labels = (
    jax.lax.dynamic_slice_in_dim(a, start, together).reshape(-1, *a.shape[2:])
    for a in (queries.features, queries.labels)
  )
  # The last ones together may include some that were counted before.
  seen = start + jnp.arange(len(own_labels)) // batch < step
  own_labels = jnp.where(seen, -1, own_labels)
  similarity, _, labels = search.nearest(bank, x, k=ks[-1], mesh=mesh)
  counts = _count(similarity, labels, own_labels, num_classes, ks, temperature)
  return jax.lax.with_sharding_constraint(counts, sharding.replicated(mesh))


def _count(similarity, labels, own_labels, num_classes, ks, temperature):
  """Right answers among Q queries: [2 (top-1, top-5), len(ks)] int32."""
  weights = jax.nn.softmax(similarity / temperature, axis=1)  # [Q, k]
  scores = jnp.zeros((len(own_labels), num_classes))
  counts = []
  for last, k in itertools.pairwise((0, *ks)):
    scores = jax.vmap(lambda s, c, w: s.at[c].add(w))(
      scores, labels[:, last:k], weights[:, last:k]
    )  # [Q, C]
    own = jnp.take_along_axis(scores, own_labels[:, None], axis=1)
    earlier = jnp.arange(num_classes) < own_labels[:, None]
    rank = ((scores > own) | ((scores == own) & earlier)).sum(1)
    # A class without a vote is no answer, however few classes got one.
    answered = (own_labels >= 0) & (own[:, 0] > 0)
    counts.append([(answered & (rank < top)).sum() for top in (1, 5)])
  return jnp.array(counts).T
