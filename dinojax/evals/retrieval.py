"""Image retrieval by frozen features: mean average precision and recall, exact.

Dimension key of features.py, and Q queries, N rows of the gallery, n of them on one
device.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from dinojax import errors, sharding
from dinojax.evals import features, search, select


def retrieval(
  gallery: features.Bank,
  queries: features.Bank | None,
  *,
  ks: Sequence[int],
  mesh: Mesh,
  block: int,
) -> dict[str, float]:
  """Ranks the gallery by cosine similarity to each query; its class is what to find.

  Average precision is the mean, over the relevant rows, of the share of relevant rows
  among all up to that one, in the full ranking. Recall at k is the share of queries
  with at least one relevant row among the first k. Equal similarities rank by the
  gallery's order, and features that are not finite after all others. Rows with label -1
  count nowhere, and queries without a relevant row are left out.

  The gallery stays where it is, and rows of similarities travel: of N numbers for each
  query, however wide the features are. A device holds about 8 x block x N / devices
  numbers at a time.

  Args:
    gallery: rows to find.
    queries: rows to find them by; None for each of the gallery, among all the others.
    ks: for recall.
    mesh: of both banks.
    block: queries at once, on all devices together.

  Returns:
    {"retrieval_map": mean average precision, "retrieval_recall_at_1": ...,
    "retrieval_left_out": number of labelled queries without a relevant row}.

  Raises:
    UserError: `ks` ask for too many rows, or no query has a relevant row.
  """
  ks = tuple(sorted(ks))
  itself = queries is None
  queries = gallery if itself else queries
  gallery_labels, query_labels = (
    np.asarray(multihost_utils.process_allgather(bank.labels, tiled=True))
    for bank in (gallery, queries)
  )
  check(gallery_labels, None if itself else query_labels, ks=ks)
  steps, batch = queries.labels.shape
  score = functools.partial(
    _score, ks=ks, mesh=mesh, itself=itself, block=min(block, batch)
  )
  scores = [jax.device_get(score(gallery, queries, step)) for step in range(steps)]
  # In float64: a sum over many queries. [2 + len(ks), Q]
  precision, counted, *found = np.concatenate(scores, axis=1, dtype=np.float64)
  labelled = int((query_labels >= 0).sum())
  return {
    "retrieval_map": float(precision.sum() / counted.sum()),
    **{
      f"retrieval_recall_at_{k}": float(hits.sum() / counted.sum())
      for k, hits in zip(ks, found, strict=True)
    },
    "retrieval_left_out": labelled - int(counted.sum()),
  }


def check(gallery: np.ndarray, queries: np.ndarray | None, *, ks: Sequence[int]):
  """Raises UserError if recall asks for too many rows, or no query has a match.

  Args:
    gallery: [...] int labels, negative for none.
    queries: the same; None for each of the gallery, among all the others.
    ks: for recall.
  """
  classes, counts = np.unique(gallery[gallery >= 0], return_counts=True)
  if max(ks) > (total := counts.sum()):
    raise errors.UserError(
      f"--recall={','.join(map(str, ks))} asks for more than the {total} labelled"
      f" images of --train; use at most {total}"
    )
  found = counts > 1 if queries is None else np.isin(classes, queries)
  if not found.any():
    raise errors.UserError(
      "retrieval finds nothing: no image of --test has another one of its class in"
      " --train; give sources that share classes"
    )


@functools.partial(jax.jit, static_argnames=("ks", "mesh", "itself", "block"))
def _score(gallery, queries, step, *, ks, mesh, itself, block):
  """Scores batch `step` of the queries.

  Returns:
    [2 + len(ks), Q] float32: average precision, whether the query counts, and whether
    one of its class is among the first k; 0 for queries that do not count.
  """
  x, labels = queries.features[step], queries.labels[step]
  count = len(labels)
  size = -(-block // mesh.size) * mesh.size
  pieces = -(-count // size)
  padding = pieces * size - count
  x = jnp.pad(x, ((0, padding), (0, 0))).reshape(pieces, size, -1)
  labels = jnp.pad(labels, (0, padding), constant_values=-1).reshape(pieces, size)
  own = step * count + jnp.arange(pieces * size).reshape(pieces, size)
  spec = PartitionSpec(None, sharding.AXES)
  scores = jax.shard_map(
    functools.partial(_rank, ks=ks, devices=mesh.size),
    mesh=mesh,
    in_specs=(spec, spec, PartitionSpec(), spec, spec),
    out_specs=PartitionSpec(None, None, sharding.AXES),
  )(*(gallery.features, gallery.labels), x, labels, own if itself else -1 - own)
  scores = jnp.moveaxis(scores, 1, 0).reshape(2 + len(ks), -1)[:, :count]
  return jax.lax.with_sharding_constraint(scores, sharding.replicated(mesh))


def _rank(gallery, labels, queries, own_labels, own, *, ks, devices):
  """On each device: its slice of the gallery, all queries -> scores of its slice."""
  steps, local, width = gallery.shape
  n = steps * local
  gallery, labels = gallery.reshape(n, width), labels.reshape(n)
  norm = jnp.maximum(jnp.linalg.norm(gallery, axis=1), search.SHORTEST)
  device = jax.lax.axis_index(sharding.AXES)
  index = jnp.arange(n)
  order = index // local * (local * devices) + device * local + index % local
  gather = functools.partial(jax.lax.all_gather, axis_name=sharding.AXES, tiled=True)
  order, all_labels = gather(order), gather(labels)  # [N]

  def rank(piece):
    queries, own_labels, own = piece
    # Full precision: on TPU the default rounds to bfloat16, and ranks would change.
    similarity = jnp.einsum(
      "qd,nd->qn", search.normalize(queries), gallery, precision="highest"
    )
    similarity = similarity / norm
    similarity = jnp.where(
      jnp.isfinite(similarity), similarity, jnp.finfo("float32").min
    )
    similarity = jax.lax.all_to_all(
      similarity, sharding.AXES, split_axis=0, concat_axis=1, tiled=True
    )  # [Q / devices, N]
    there = (all_labels >= 0) & (order != own[:, None])
    relevant = there & (all_labels == own_labels[:, None])
    keys = -select.ordered_keys(jnp.where(there, similarity, -jnp.inf))
    # The order breaks ties; what is relevant rides along in its lowest bit.
    _, ranked = jax.lax.sort(
      (keys, 2 * order + relevant), dimension=1, num_keys=2, is_stable=False
    )
    relevant = ranked & 1
    found = jnp.cumsum(relevant, axis=1)
    precision = relevant * found / jnp.arange(1, 1 + relevant.shape[1])
    total = found[:, -1]
    precision = precision.sum(1) / jnp.maximum(total, 1)
    return jnp.stack([precision, total > 0, *(found[:, k - 1] > 0 for k in ks)])

  return jax.lax.map(rank, (queries, own_labels, own))
