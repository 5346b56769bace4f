"""Time of the neighbour search beside faiss's exact one, and what memory it takes.

  pip install faiss-cpu
  python tests/bench/knn.py
  XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/bench/knn.py --memory

The first runs both in one process, taking turns, each on all cores: 10,000 queries, the
200 nearest of 50,000 rows of 384 numbers. Ours includes bringing the rows to unit
length; faiss's IndexFlatIP gets them so. The second compiles the search for 1,281,167
rows of 1,536 numbers on all devices, and prints bytes of each without running it.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from dinojax import sharding
from dinojax.evals import features, search, votes
from dinojax.runtime import allocator

TOLERANCE = 1e-5  # within which two similarities may have rounded apart


def unit_rows(seed, rows, width, clusters=1000):
  """Vectors around random centres, as features are."""
  centres = np.random.default_rng(0).normal(size=(clusters, width))
  rng = np.random.default_rng(seed)
  x = centres[rng.integers(clusters, size=rows)] + 2 * rng.normal(size=(rows, width))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def abstract_bank(mesh, rows, width, batch):
  """The bank's shapes and where it lies, without its numbers."""
  shape = (-(-rows // batch), batch)
  where = NamedSharding(mesh, PartitionSpec(None, sharding.AXES))
  return features.Bank(
    jax.ShapeDtypeStruct((*shape, width), jnp.float32, sharding=where),
    jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where),
  )


def print_memory(mesh, k, rows=1_281_167, width=1536, batch=1024):
  """Bytes of a device for ImageNet-1k and the widest backbone."""
  bank = abstract_bank(mesh, rows, width, batch)
  queries = jax.ShapeDtypeStruct((votes.QUERIES, width), jnp.float32)
  nearest = jax.jit(functools.partial(search.nearest, k=k, mesh=mesh))
  memory = nearest.lower(bank, queries).compile().memory_analysis()
  print(
    f"{rows:,} x {width:,} on {mesh.size} devices, bytes of each:\n"
    f"bank and queries {memory.argument_size_in_bytes:,}\n"
    f"temporaries {memory.temp_size_in_bytes:,}\n"
    f"answer {memory.output_size_in_bytes:,}"
  )


def agreement(ours, theirs):
  """Share of equal rows; fails where they differ by more than rounding."""
  (similarity, rows), (wanted, wanted_rows) = ours, theirs
  np.testing.assert_allclose(similarity, wanted, atol=TOLERANCE)
  different = rows != wanted_rows
  for query in np.flatnonzero(different.any(1)):
    # A row that only one of the two names must tie with the last of the k.
    alone = np.setxor1d(rows[query], wanted_rows[query])
    named = np.isin(rows[query], alone), np.isin(wanted_rows[query], alone)
    for values, mask in zip((similarity, wanted), named, strict=True):
      assert (values[query][mask] < wanted[query, -1] + TOLERANCE).all(), query
  return 1 - different.mean()


def race(mesh, args):
  """Both searches in turns."""
  import faiss

  bank_rows = unit_rows(1, args.rows, args.width)
  query_rows = unit_rows(2, args.queries, args.width)
  index = faiss.IndexFlatIP(args.width)
  index.add(bank_rows)
  batch = args.rows // 100
  where = NamedSharding(mesh, PartitionSpec(None, sharding.AXES))
  bank = features.Bank(
    jax.device_put(bank_rows.reshape(100, batch, -1), where),
    jax.device_put(np.zeros((100, batch), np.int32), where),
  )
  nearest = jax.jit(functools.partial(search.nearest, k=args.k, mesh=mesh))
  parts = np.array_split(query_rows, -(-args.queries // votes.QUERIES))

  def ours():
    found = [nearest(bank, part)[:2] for part in parts]
    return [np.concatenate(x) for x in zip(*jax.device_get(found), strict=True)]

  share = agreement(ours(), index.search(query_rows, args.k))
  print(f"{share:.3%} of the neighbours in the same place, the rest ties in float32")
  times = []
  for _ in range(args.rounds):
    start = time.perf_counter()
    ours()
    middle = time.perf_counter()
    index.search(query_rows, args.k)
    times.append((middle - start, time.perf_counter() - middle))
    print("ours {:.2f} s, faiss {:.2f} s".format(*times[-1]), flush=True)
  ratios = sorted(theirs / ours for ours, theirs in times)
  print(
    f"faiss's time over ours: median {statistics.median(ratios):.2f},"
    f" from {ratios[0]:.2f} to {ratios[-1]:.2f}"
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--memory", action="store_true")
  parser.add_argument("--rows", type=int, default=50_000, help="a multiple of 100")
  parser.add_argument("--queries", type=int, default=10_000)
  parser.add_argument("--width", type=int, default=384)
  parser.add_argument("--k", type=int, default=200)
  parser.add_argument("--rounds", type=int, default=9)
  args = parser.parse_args()
  allocator.keep_pages()  # as every command does
  mesh = sharding.make_mesh(data=1, fsdp=-1)
  if args.memory:
    print_memory(mesh, args.k)
  else:
    race(mesh, args)


if __name__ == "__main__":
  main()
