"""Embeddings by a backbone: similar images to drop, and samples even over clusters.

Neighbours are searched among images of the same cell of a k-means, two cells an image,
by faiss: an inverted file (IVF) whose lists are tasks. Cells and ids pass through the
shuffle. Features are computed once, kept in float16, and read from their files.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import faiss
import jax
import numpy as np

from dinojax import backbone, errors
from dinojax.curation import candidates, engine, inputs, jobs
from dinojax.data import eval_batches
from dinojax.runtime import compiled

CELLS = 2  # of each image; near neighbours mostly share one of two
TRAIN_IMAGES = 64  # for each centroid, at most, that k-means sees
ITERATIONS = 20  # of k-means


@dataclasses.dataclass(frozen=True)
class Network:
  """A backbone and how images are resized for it, as in backbone_flags.py."""

  checkpoint: str
  step: int | None
  heads: int | None
  pool: str | None
  dtype: str
  feature: str
  layers: int
  resize: int
  crop: int
  batch_size: int


class _Images:
  """Some images of a part, as a source of eval_batches.open_batches."""

  class_names = ()
  labels = None
  fingerprint = ""

  def __init__(self, records: list[inputs.Record]):
    self._records = records

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict:
    return {"image": self._records[index].image, "label": -1}

  def name(self, index: int) -> str:
    return self._records[index].name


@functools.lru_cache(maxsize=1)
def _load_backbone(network: Network):
  """A compiled function, images -> features, and their layout; once per process."""
  compiled.keep_programs("auto")
  loaded = backbone.load(
    network.checkpoint,
    step=network.step,
    heads=network.heads,
    pool=network.pool,
    dtype=network.dtype,
  )
  columns = backbone.columns(network.feature, network.layers)
  apply = jax.jit(
    functools.partial(backbone.image_columns, loaded.module, wanted=columns)
  )
  return functools.partial(apply, loaded.params), loaded.layout


def compute_features(part: jobs.Part, *, job: jobs.Job, network: Network) -> None:
  """Saves the features of a part's images, of unit length or zeros; one task."""
  path = job.path("features", part.number)
  if path.exists():
    return
  rows = jobs.rows_of(job.kept_ids(part.number, before="embedding"))
  apply, layout = _load_backbone(network)
  features = None
  records = list(inputs.read(part, job, rows.tolist()))
  batches = eval_batches.open_batches(
    _Images(records),
    batch_size=network.batch_size,
    rows=range(network.batch_size),
    resize=network.resize,
    crop=network.crop,
    workers=0,
    max_pixels=job.settings.max_pixels,
    layout=layout,
  )
  for batch in batches:
    # In float64, since squares of large finite features overflow in float32.
    found = np.asarray(apply(batch["image"]), np.float64)
    names = [records[index].name for index in batch["index"]]
    _check_finite(found, batch["valid"], names, network)
    if features is None:
      features = np.zeros((len(job.rows(part.number)), found.shape[1]), np.float16)
    valid = batch["valid"]
    found = found[valid] / np.linalg.norm(found[valid], axis=1, keepdims=True)
    features[rows[batch["index"][valid]]] = found
  if features is None:  # no image of this part is kept
    shape = 1, network.crop, network.crop, layout.channels
    width = np.asarray(apply(np.zeros(shape, layout.dtype)))
    features = np.zeros((len(job.rows(part.number)), width.shape[1]), np.float16)
  job.save(path, features)


def _check_finite(
  found: np.ndarray, valid: np.ndarray, names: list[str], network: Network
) -> None:
  """Raises UserError for a feature that is no direction: NaN, infinite or zero."""
  norms = np.linalg.norm(found, axis=1)
  wrong = np.flatnonzero(valid & ~(np.isfinite(norms) & (norms > 0)))
  if len(wrong):
    raise errors.UserError(
      f"--checkpoint={network.checkpoint} makes features of {names[wrong[0]]} that are"
      " zero or not finite; check the weights, or try --dtype=float32"
    )


def features_of(job: jobs.Job, ids: np.ndarray) -> np.ndarray:
  """Features of images, float32 [n, D]."""

  def read_part(number):
    return np.load(job.path("features", number), mmap_mode="r")

  return jobs.gather(ids, read_part).astype(np.float32)


def similar(job: jobs.Job, a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Whether embeddings have a cosine of near_cosine; ids uint64 [n] -> bool [n]."""
  ids, places = np.unique(np.concatenate([a, b]), return_inverse=True)
  features = features_of(job, ids)
  cosine = np.einsum("nd,nd->n", features[places[: len(a)]], features[places[len(a) :]])
  return cosine >= job.settings.near_cosine


def train_centroids(
  job: jobs.Job, parts: list[jobs.Part], *, name: str, clusters: int, before: str
) -> np.ndarray:
  """Centroids, by k-means, of the images that are kept before a step; [clusters, D]."""
  path = job.path("centroids", name)
  if path.exists():
    return np.load(path)
  ids = np.concatenate([job.kept_ids(part.number, before=before) for part in parts])
  clusters = min(clusters, len(ids))
  shuffled = np.argsort(jobs.splitmix64(ids, job.settings.seed), kind="stable")
  ids = np.sort(ids[shuffled[: clusters * TRAIN_IMAGES]])
  if not len(ids):
    raise errors.UserError(
      "no image is left to embed: all were dropped before; see --min_side and the like"
    )
  faiss.omp_set_num_threads(1)  # more of them may sum in another order
  kmeans = faiss.Kmeans(
    features_of(job, ids).shape[1],
    clusters,
    niter=ITERATIONS,
    seed=job.settings.seed,
    spherical=True,
    min_points_per_centroid=1,
    max_points_per_centroid=TRAIN_IMAGES,
  )
  kmeans.train(features_of(job, ids))
  job.save(path, kmeans.centroids)
  return kmeans.centroids


def nearest_centroids(
  features: np.ndarray, centroids: np.ndarray, count: int
) -> np.ndarray:
  """The nearest centroids of features; int64 [n, count]."""
  faiss.omp_set_num_threads(1)
  index = faiss.IndexFlatIP(centroids.shape[1])
  index.add(centroids)
  return index.search(features, min(count, len(centroids)))[1]


def candidate_pairs(
  job: jobs.Job, parts: list[jobs.Part], images: int, options
) -> np.ndarray:
  """Pairs, candidates.PAIR in order, of similar embeddings that share a cell."""
  done = job.path("embedding", "pairs")
  if done.exists():
    return np.load(done)
  cells = math.isqrt(images)
  train_centroids(job, parts, name="cells", clusters=cells, before="embedding")
  engine.run_grouped(
    functools.partial(_emit_cells, job=job),
    functools.partial(_reduce_cell, job=job),
    parts,
    options=options,
    label="finding similar embeddings",
    count_done=engine.file_counter(job.work / "cells"),
  )
  pairs = candidates.merge_files(job.work / "cells")
  job.save(done, pairs)
  return pairs


def _emit_cells(part: jobs.Part, *, job: jobs.Job) -> Iterator[tuple[int, bytes]]:
  ids = job.kept_ids(part.number, before="embedding")
  if not len(ids):
    return
  centroids = np.load(job.path("centroids", "cells"))
  cells = nearest_centroids(features_of(job, ids), centroids, CELLS)
  ids = np.repeat(ids, cells.shape[1])
  yield from candidates.group_by_key(ids, cells.ravel())


def _reduce_cell(key: int, blobs, *, job: jobs.Job) -> None:
  ids = np.sort(np.frombuffer(b"".join(blobs), np.uint64))
  features = features_of(job, ids)
  faiss.omp_set_num_threads(1)
  index = faiss.IndexFlatIP(features.shape[1])
  index.add(features)
  # A little below, since float32 sums may round apart; `similar` decides.
  limits, _, other = index.range_search(features, job.settings.near_cosine - 1e-4)
  first = np.repeat(np.arange(len(ids)), np.diff(limits.astype(np.int64)))
  ahead = first < other
  pairs = candidates.make_pairs(ids[first[ahead]], ids[other[ahead]])
  job.save(job.path("cells", f"{key}"), pairs)


def assign_clusters(part: jobs.Part, *, job: jobs.Job) -> None:
  """Saves the cluster of each kept image of a part; one task."""
  path = job.path("clusters", part.number)
  if path.exists():
    return
  ids = job.kept_ids(part.number, before="sample")
  found = np.empty(0, np.int64)
  if len(ids):
    centroids = np.load(job.path("centroids", "clusters"))
    found = nearest_centroids(features_of(job, ids), centroids, 1)[:, 0]
  job.save(path, found)


def drop_unsampled(job: jobs.Job, parts: list[jobs.Part], options) -> None:
  """Drops all but `job.settings.sample` images, taken evenly from the clusters."""
  path = job.path("drop", "sample")
  if path.exists():
    return
  parts = [part for part in parts if not part.excluded]
  train_centroids(
    job, parts, name="clusters", clusters=job.settings.clusters, before="sample"
  )
  engine.run_tasks(
    functools.partial(assign_clusters, job=job),
    parts,
    options=options,
    label="assigning clusters",
    count_done=engine.file_counter(job.work / "clusters"),
  )
  ids = np.concatenate([job.kept_ids(part.number, before="sample") for part in parts])
  clusters = np.concatenate(
    [np.load(job.path("clusters", part.number)) for part in parts]
  )
  keys = jobs.splitmix64(ids, job.settings.seed)
  keep = sample_evenly(clusters, keys, job.settings.sample)
  drops = np.zeros(int((~keep).sum()), jobs.DROP)
  drops["id"] = drops["match"] = ids[~keep]
  drops["reason"] = jobs.REASON["not sampled"]
  job.save(path, drops)


def sample_evenly(clusters: np.ndarray, keys: np.ndarray, wanted: int) -> np.ndarray:
  """Which images to keep: equally many of every cluster, or all of a smaller one.

  Args:
    clusters: int64 [n], of each image.
    keys: uint64 [n], random; the lowest of a cluster are kept.
    wanted: images to keep; what is left over goes to clusters by their keys, too.

  Returns:
    bool [n], of which min(wanted, n) are True.
  """
  order = np.lexsort((keys, clusters))
  starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
  sizes = np.diff(np.append(starts, len(order)))
  rank = np.empty(len(order), np.int64)  # of an image in its cluster
  rank[order] = np.arange(len(order)) - np.repeat(starts, sizes)
  keep = np.zeros(len(order), bool)
  keep[np.lexsort((keys, rank))[:wanted]] = True  # first one of each cluster, ...
  return keep
