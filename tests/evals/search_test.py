"""The search is exact, in any number of chunks, and its memory is bounded."""

import functools

import jax
import jax.numpy as jnp
import knn_test
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dinojax import sharding
from dinojax.evals import features, search, select, votes

K = 25


def exact(x, labels, queries):
  """Similarities and rows in float64, nearest first, the first of equals first."""
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  similarity = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ x.T
  similarity[:, labels < 0] = -np.inf
  rows = np.argsort(-similarity, axis=1, kind="stable")[:, :K]
  return np.take_along_axis(similarity, rows, axis=1), rows


def test_chunks_are_whole_groups_within_a_device_that_cover_its_rows(monkeypatch):
  monkeypatch.setattr(search, "CHUNK_BYTES", 4 * 16 * 701)
  counts = set()
  for rows in range(60, 2_000, 7):
    for slots in (64, 224):
      chunks, c, group = search.chunks_of(rows, 16, slots, 8)
      assert c % group == 0 and c <= rows and (chunks - 1) * c < rows <= chunks * c
      counts.add(chunks)
  assert counts == {1, 2, 3}


# Of the long one, whose chunks differ by little from the second's, see above.
@pytest.mark.parametrize(
  ("shape", "chunk", "chunks", "grouped"),
  [
    pytest.param((1, 1), 10**6, 2, True, marks=pytest.mark.long),
    ((1, 1), 701, 6, True),
    ((2, 4), 104, 5, False),
  ],
)
def test_rows_are_exact_in_any_chunks_on_any_mesh(
  monkeypatch, shape, chunk, chunks, grouped
):
  # Neither groups nor chunks divide what a device holds.
  mesh = knn_test.mesh_of(*shape)
  monkeypatch.setattr(search, "CHUNK_BYTES", 4 * 16 * chunk)
  monkeypatch.setattr(search, "PIECE", 8)
  nearest = jax.jit(functools.partial(search.nearest, k=K, mesh=mesh))
  for ties in (False, True):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4001, 16)).astype(np.float32).astype(np.float64)
    if ties:  # Vectors of quarters: similarities are exact, and have 17 values.
      x = np.sign(x) / 4
    labels = rng.integers(-1, 9, size=len(x))
    broken = x.copy()
    broken[7] = np.nan
    bank = knn_test.bank_of(mesh, broken, labels, 43 * mesh.size)
    local = bank.labels.size // mesh.size
    found_chunks, c, group = search.chunks_of(local, 16, select.slots_for(K), 8)
    assert (found_chunks, group > 1) == (chunks, grouped)
    # The last chunk begins with what the one before has seen; some queries lie there.
    assert found_chunks * c > local
    seen = (local - c) // 43 * 43 * mesh.size + (local - c) % 43
    queries = x[[*range(8, 18), *range(seen, seen + 3)]]
    similarity, rows, found = jax.device_get(nearest(bank, np.float32(queries)))
    labels[7] = -1
    wanted, wanted_rows = exact(x, labels, queries)
    np.testing.assert_array_equal(rows, wanted_rows)
    np.testing.assert_allclose(similarity, wanted, atol=1e-6)
    np.testing.assert_array_equal(found, labels[wanted_rows])


def test_memory_beyond_the_bank_is_bounded_for_all_of_imagenet():
  mesh, steps, batch, width = knn_test.mesh_of(1, 8), 1252, 1024, 1536
  where = NamedSharding(mesh, PartitionSpec(None, sharding.AXES))
  bank = features.Bank(
    jax.ShapeDtypeStruct((steps, batch, width), jnp.float32, sharding=where),
    jax.ShapeDtypeStruct((steps, batch), jnp.int32, sharding=where),
  )
  queries = jax.ShapeDtypeStruct((votes.QUERIES, width), jnp.float32)
  nearest = jax.jit(functools.partial(search.nearest, k=200, mesh=mesh))
  memory = nearest.lower(bank, queries).compile().memory_analysis()
  share = steps * batch * (width + 1) * 4 / mesh.size
  assert memory.argument_size_in_bytes < share + 2**26
  assert memory.temp_size_in_bytes < 340 * 2**20
