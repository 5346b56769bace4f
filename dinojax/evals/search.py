"""Exact nearest neighbours by cosine similarity, on the whole mesh, in bounded memory.

Dimension key of features.py, and Q queries, k neighbours, n rows of the bank on one
device, c of a chunk, g of a group, M slots of `select`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from dinojax import sharding
from dinojax.evals import features, select

# Most a device holds at a time: similarities of a piece of the queries and a chunk of
# its bank, and the chunk itself at unit length.
SIMILARITY_BYTES = 2**28
CHUNK_BYTES = 2**27
PIECE = 1024  # queries
SHORTEST = 1e-12  # shorter vectors are not brought to unit length


def nearest(bank: features.Bank, queries: jax.Array, *, k: int, mesh: Mesh):
  """The k most similar labelled rows of the bank for each query, most similar first.

  Each device walks its shard of the bank by chunks. Neighbouring similarities form
  groups of g; only groups whose maximum is among the k highest can hold one of the k
  most similar, so all others are skipped. Equal similarities rank by the bank's order.

  Args:
    bank: of all images; rows of label -1, and those that are not finite, are left out.
    queries: [Q, D], at any length of vectors.
    k: at most the bank's labelled rows.
    mesh: that the bank is sharded over.

  Returns:
    similarity: [Q, k] float32. rows: [Q, k] int32, of the bank's S * B. labels: [Q, k].
    All sharded over queries if the number of devices divides them.
  """
  count = len(queries)
  pieces = -(-count // PIECE)
  size = -(-count // (pieces * mesh.size)) * mesh.size
  queries = jnp.pad(queries, ((0, pieces * size - count), (0, 0)))
  queries = queries.reshape(pieces, size, -1)
  spec = PartitionSpec(None, sharding.AXES)
  found = jax.shard_map(
    functools.partial(_search, k=k, devices=mesh.size),
    mesh=mesh,
    in_specs=(spec, spec, PartitionSpec()),
    out_specs=spec,
  )(bank.features, bank.labels, queries)
  return tuple(x.reshape(pieces * size, k)[:count] for x in found)


def chunks_of(rows: int, width: int, slots: int, piece: int) -> tuple[int, int, int]:
  """How to walk `rows` rows of a device: number of chunks, rows c of each, group g."""
  most = min(CHUNK_BYTES // (4 * width), SIMILARITY_BYTES // (4 * piece))
  chunks = -(-rows // most)
  group = 2 ** round(math.log2(max(1, rows / chunks / slots)) / 2)
  if chunks == 1 and rows % group:
    chunks = 2  # a chunk is whole groups, and no longer than the bank
  return chunks, -(-rows // (chunks * group)) * group, group


def _search(bank, labels, queries, *, k, devices):
  """On each device: its share of the bank, all queries -> its share of the answers."""
  steps, local, width = bank.shape
  n = steps * local
  # Rows in this order rise with their place in the bank.
  bank, labels = bank.reshape(n, width), labels.reshape(n)
  pieces, size, _ = queries.shape
  slots = select.slots_for(k)
  chunks, c, g = chunks_of(n, width, slots, size)
  queries = normalize(queries)

  def visit(best, chunk):
    start = jnp.minimum(chunk * c, n - c)
    index = start + jnp.arange(c)
    x = normalize(jax.lax.dynamic_slice_in_dim(bank, start, c))
    valid = jax.lax.dynamic_slice_in_dim(labels, start, c) >= 0
    # NaN makes all similarities of a row NaN, so that no label need be looked up.
    x = jnp.where((valid & (index >= chunk * c))[:, None], x, jnp.nan)
    merge = functools.partial(_merge, x=x, start=start, n=n, g=g, k=k)
    return jax.lax.map(lambda args: merge(*args), (queries, best)), None

  shape = (pieces, size)
  best = (
    jnp.full((*shape, slots), -jnp.inf),
    jnp.full((*shape, slots), n, jnp.int32),
    jnp.full(shape, select.LOWEST),
  )
  best = jax.lax.pcast(best, sharding.AXES, to="varying")
  (similarity, index, _), _ = jax.lax.scan(visit, best, jnp.arange(chunks))

  # From places on this device to those of the whole bank; what is empty comes last.
  device = jax.lax.axis_index(sharding.AXES)
  row = index // local * (local * devices) + device * local + index % local
  row = jnp.where(index < n, row, n * devices + device * slots + jnp.arange(slots))
  label = jnp.take(labels, index, mode="fill", fill_value=-1)
  # Each device finishes its share of the queries, with what all have found for them.
  found = [
    jax.lax.all_to_all(x, sharding.AXES, split_axis=1, concat_axis=2, tiled=True)
    for x in (similarity, row, label)
  ]
  answer = _finish([x.reshape(-1, x.shape[2]) for x in found], k=k, slots=slots)
  return [x.reshape(pieces, -1, k) for x in answer]


def _merge(queries, best, *, x, start, n, g, k):
  """A piece of the queries meets a chunk: M best of both, by rising place."""
  similarity, index, floor = best
  slots = similarity.shape[1]
  # Full precision: on TPU the default rounds to bfloat16, and ranks would change.
  new = jnp.einsum("qd,cd->qc", queries, x, precision="highest")
  column = jnp.broadcast_to(jnp.arange(x.shape[0] // g), (len(new), x.shape[0] // g))
  if g > 1:
    new = new.reshape(len(new), -1, g)
    maxima = jnp.full(new.shape[:2], -jnp.inf)
    for i in range(g):  # NaN is never greater; several times as fast as `max` on CPU
      maxima = jnp.where(new[:, :, i] > maxima, new[:, :, i], maxima)
    # Fewer groups than slots, as some hold more than one that reaches the threshold:
    # mostly there is room for these too, and the next one need not be looked for.
    column, floor = select.shortlist(
      maxima, column[:1], floor, k=k, slots=slots - select.BITS
    )
    new = jnp.take_along_axis(
      new, column[:, :, None], axis=1, mode="fill", fill_value=-jnp.inf
    ).reshape(len(new), -1)
  new = jnp.where(jnp.isnan(new), -jnp.inf, new)
  joined = jnp.concatenate([similarity, new], axis=1)
  order = jnp.arange(joined.shape[1])[None]
  kept, floor = select.shortlist(joined, order, floor, k=k, slots=slots)

  def take(x, at, fill=None):
    mode = "clip" if fill is None else "fill"
    return jnp.take_along_axis(x, at, axis=1, mode=mode, fill_value=fill)

  fresh = kept - slots
  place = start + take(column, fresh // g) * g + fresh % g
  place = jnp.where(fresh < 0, take(index, kept), place)
  place = jnp.where(kept < joined.shape[1], place, n)
  return take(joined, kept, -jnp.inf), place, floor


def _finish(found, *, k, slots):
  """What all devices found, [q, devices * M] each: the k best, [q, k] each."""
  similarity, row, label = found
  if similarity.shape[1] > slots:
    floor = jnp.full(len(row), select.LOWEST)
    floor = jax.lax.pcast(floor, sharding.AXES, to="varying")
    kept, _ = select.shortlist(similarity, row, floor, k=k, slots=slots)
    take = functools.partial(jnp.take_along_axis, indices=kept, axis=1, mode="fill")
    similarity = take(similarity, fill_value=-jnp.inf)
    row = take(row, fill_value=jnp.iinfo(jnp.int32).max)
    label = take(label, fill_value=-1)
    row, similarity, label = jax.lax.sort((row, similarity, label), dimension=1)
  # top_k keeps the earlier of equals, and what stands earlier has the lower row.
  similarity, best = jax.lax.top_k(similarity, k)
  return [similarity, *(jnp.take_along_axis(x, best, axis=1) for x in (row, label))]


def normalize(x: jax.Array) -> jax.Array:
  """[..., D] to unit length, float32."""
  x = x.astype(jnp.float32)
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), SHORTEST)
