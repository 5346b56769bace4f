"""Deduplication by hashes: exact duplicates, and candidate pairs of near duplicates.

Only hashes and ids pass through Beam's shuffle, packed in arrays: 24 bytes an image for
exact duplicates, 16 bytes an image and table for near ones. A few tables at a time are
shuffled, so that a shuffle stays within SHUFFLE_BYTES.

Near duplicates: hashes that differ in at most r bits are equal in at least 2 of r + 2
bands. Each pair of bands makes a table, and images that agree in both bands are
compared.
"""

import functools
import itertools
import pathlib
from collections.abc import Iterator

import numpy as np

from dinojax.curation import engine, fingerprints, jobs

SHUFFLE_BYTES = 4 << 30  # of one pipeline
GROUP_BYTES = 32 << 20  # of one group, about
COPIES = 8  # images of one hash that are compared with others; the rest with these only
HASH_BITS = 64
EXACT = np.dtype([("key", np.uint64), ("check", np.uint64), ("id", np.uint64)])
NEAR = np.dtype([("hash", np.uint64), ("id", np.uint64)])
PAIR = np.dtype([("a", np.uint64), ("b", np.uint64)])  # a < b


def drop_exact(job: jobs.Job, parts: list[jobs.Part], images: int, options) -> None:
  """Drops all but the first of equal images; `job.settings.exact` says what is equal.

  Args:
    job: the ingest.
    parts: all of its parts.
    images: how many images they hold.
    options: Beam's.
  """
  path = job.path("drop", "exact")
  if path.exists():
    return
  groups = -(-images * EXACT.itemsize // GROUP_BYTES)
  folder = "exact"
  engine.run_grouped(
    functools.partial(_emit_exact, job=job, groups=groups),
    functools.partial(_reduce_exact, job=job, folder=folder),
    parts,
    options=options,
    label="finding exact duplicates",
    count_done=engine.file_counter(job.work / folder),
  )
  pairs = merge_files(job.work / folder)
  excluded = {part.number for part in parts if part.excluded}
  drops = np.zeros(len(pairs), jobs.DROP)
  drops["match"], drops["id"] = pairs["a"], pairs["b"]
  in_excluded = np.isin(jobs.parts_of(pairs["a"]), list(excluded))
  drops["reason"] = np.where(
    in_excluded, jobs.REASON["in an excluded set"], jobs.REASON["exact duplicate"]
  )
  job.save(path, np.sort(drops, order="id"))


def _emit_exact(
  part: jobs.Part, *, job: jobs.Job, groups: int
) -> Iterator[tuple[int, bytes]]:
  ids = job.kept_ids(part.number, before="exact")
  digests = job.rows(part.number)[job.settings.exact][jobs.rows_of(ids)]
  rows = np.empty(len(ids), EXACT)
  rows["key"], rows["check"], rows["id"] = digests[:, 0], digests[:, 1], ids
  yield from group_by_key(rows, rows["key"] % np.uint64(groups))


def _reduce_exact(key: int, blobs, *, job: jobs.Job, folder: str) -> None:
  rows = np.sort(np.frombuffer(b"".join(blobs), EXACT), order=["key", "check", "id"])
  digests = rows[["key", "check"]]
  new = np.append(True, digests[1:] != digests[:-1])
  first = rows["id"][np.flatnonzero(new)][np.cumsum(new) - 1]
  pairs = np.empty(int((~new).sum()), PAIR)
  pairs["a"], pairs["b"] = first[~new], rows["id"][~new]
  job.save(job.path(folder, f"{key}"), pairs)


def near_pairs(
  job: jobs.Job, parts: list[jobs.Part], images: int, options
) -> np.ndarray:
  """Pairs, PAIR in order, whose hashes differ in at most `job.settings.near_bits`.

  Arguments are those of `drop_exact`.
  """
  tables = list(itertools.combinations(range(job.settings.near_bits + 2), 2))
  groups = -(-images * NEAR.itemsize // GROUP_BYTES)
  at_once = max(SHUFFLE_BYTES // max(images * NEAR.itemsize, 1), 1)
  for start in range(0, len(tables), at_once):
    folder = f"table-{start:04d}"
    done = job.path("tables", folder)
    if done.exists():
      continue
    masks = [band_mask(bands, job) for bands in tables[start : start + at_once]]
    engine.run_grouped(
      functools.partial(_emit_near, job=job, masks=masks, groups=groups),
      functools.partial(
        _reduce_near, job=job, masks=masks, groups=groups, folder=folder
      ),
      parts,
      options=options,
      label=f"finding similar hashes, {start + len(masks)} of {len(tables)} tables",
      count_done=engine.file_counter(job.work / folder),
    )
    job.save(done, merge_files(job.work / folder))
  return np.unique(
    np.concatenate([np.load(path) for path in sorted((job.work / "tables").iterdir())])
  )


def band_mask(bands: tuple[int, ...], job: jobs.Job) -> np.uint64:
  """The bits of some of the r + 2 bands."""
  edges = np.linspace(0, HASH_BITS, job.settings.near_bits + 3).round().astype(int)
  bits = [range(edges[band], edges[band + 1]) for band in bands]
  return np.uint64(sum(1 << bit for band in bits for bit in band))


def _emit_near(
  part: jobs.Part, *, job: jobs.Job, masks: list[np.uint64], groups: int
) -> Iterator[tuple[int, bytes]]:
  ids = job.kept_ids(part.number, before="near")
  rows = np.empty(len(ids), NEAR)
  rows["hash"] = job.rows(part.number)["hash"][jobs.rows_of(ids)]
  rows["id"] = ids
  for table, mask in enumerate(masks):
    keys = jobs.splitmix64(rows["hash"] & mask) % np.uint64(groups)
    for key, blob in group_by_key(rows, keys):
      yield table * groups + key, blob


def _reduce_near(
  key: int, blobs, *, job: jobs.Job, masks: list[np.uint64], groups: int, folder: str
) -> None:
  rows = np.frombuffer(b"".join(blobs), NEAR)
  pairs = pairs_within(rows, masks[key // groups], job.settings.near_bits)
  job.save(job.path(folder, f"{key}"), pairs)


def pairs_within(rows: np.ndarray, mask: np.uint64, bits: int) -> np.ndarray:
  """Pairs of NEAR rows that agree under `mask` and differ in at most `bits` bits.

  Of a hash that occurs many times, the first COPIES stand for all.
  """
  rows = np.sort(rows, order=["hash", "id"])
  starts = np.flatnonzero(np.append(True, rows["hash"][1:] != rows["hash"][:-1]))
  lengths = np.diff(np.append(starts, len(rows)))
  copy = np.arange(len(rows)) - np.repeat(starts, lengths)
  start = np.repeat(starts, lengths)
  rest = copy >= COPIES
  found = [
    make_pairs(rows["id"][start[rest] + i], rows["id"][rest]) for i in range(COPIES)
  ]
  rows = rows[copy < COPIES]
  key = rows["hash"] & mask
  order = np.argsort(key, kind="stable")
  rows, key = rows[order], key[order]
  left = np.arange(len(rows))
  for ahead in range(1, len(rows)):
    left = left[left + ahead < len(rows)]
    left = left[key[left] == key[left + ahead]]
    if not len(left):
      break
    a, b = rows[left], rows[left + ahead]
    near = fingerprints.hamming_distance(a["hash"], b["hash"]) <= bits
    found.append(make_pairs(a["id"][near], b["id"][near]))
  return np.unique(np.concatenate(found))


def make_pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """PAIR of ids that are in any order."""
  pairs = np.empty(len(a), PAIR)
  pairs["a"], pairs["b"] = np.minimum(a, b), np.maximum(a, b)
  return pairs


def group_by_key(rows: np.ndarray, keys: np.ndarray) -> Iterator[tuple[int, bytes]]:
  """Yields each key with its rows as bytes."""
  order = np.argsort(keys, kind="stable")
  rows, keys = rows[order], keys[order]
  bounds = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
  for start, stop in itertools.pairwise([*bounds.tolist(), len(rows)]):
    if stop > start:
      yield int(keys[start]), rows[start:stop].tobytes()


def merge_files(folder: pathlib.Path) -> np.ndarray:
  """The pairs of all files of a folder, in order, each once."""
  paths = sorted(folder.iterdir()) if folder.exists() else []
  found = [np.load(path) for path in paths] or [np.empty(0, PAIR)]
  return np.unique(np.concatenate(found))
