"""Image retrieval by frozen features: mean average precision and recall, exact.

Dimension key of features.py, and Q queries, N rows of the gallery, n of them on one
device.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
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
    UserError: `ks` or `block` cannot work, or no query has a relevant row.
  """
  ks = tuple(sorted(ks))
  rows = int((gallery.labels >= 0).sum())
  if block < 1 or not ks or ks[0] < 1 or ks[-1] > rows:
    raise errors.UserError(
      f"ks={ks} must lie from 1 to the gallery's {rows} readable rows, and"
      f" block={block} must be at least 1; try ks=1,5,10 and block=64"
    )
  itself = queries is None
  queries = gallery if itself else queries
  steps, batch = queries.labels.shape
  rate = functools.partial(
    _rate, ks=ks, mesh=mesh, itself=itself, block=min(block, batch)
  )
  rates = [jax.device_get(rate(gallery, queries, step)) for step in range(steps)]
  # In float64: a sum over many queries. [2 + len(ks), Q]
  precision, counted, *found = np.concatenate(rates, axis=1, dtype=np.float64)
  if not counted.any():
    raise errors.UserError(
      "no query has another image of its class in the gallery; give sources with"
      " labels, in which classes have more than one image"
    )
  labelled = int((queries.labels >= 0).sum())
  return {
    "retrieval_map": float(precision.sum() / counted.sum()),
    **{
      f"retrieval_recall_at_{k}": float(hits.sum() / counted.sum())
      for k, hits in zip(ks, found, strict=True)
    },
    "retrieval_left_out": labelled - int(counted.sum()),
  }


@functools.partial(jax.jit, static_argnames=("ks", "mesh", "itself", "block"))
def _rate(gallery, queries, step, *, ks, mesh, itself, block):
  """Rates batch `step` of the queries.

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
  rates = jax.shard_map(
    functools.partial(_rank, ks=ks, devices=mesh.size),
    mesh=mesh,
    in_specs=(spec, spec, PartitionSpec(), spec, spec),
    out_specs=PartitionSpec(None, None, sharding.AXES),
  )(*(gallery.features, gallery.labels), x, labels, own if itself else -1 - own)
  rates = jnp.moveaxis(rates, 1, 0).reshape(2 + len(ks), -1)[:, :count]
  return jax.lax.with_sharding_constraint(rates, sharding.replicated(mesh))


def _rank(gallery, labels, queries, own_labels, own, *, ks, devices):
  """On each device: its share of the gallery, all queries -> rates of its share."""
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
