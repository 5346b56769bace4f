"""Features of our own backbone: images alike in what they show, and even samples.

Neighbours are sought among images of the same cell of a k-means, two cells each, by
faiss: an inverted file whose lists are tasks. Cells and ids pass through the shuffle;
features are computed once, kept in float16, and read from their files.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import faiss
import jax
import numpy as np

from dinojax import backbone, errors
from dinojax.curation import collisions, engine, inputs, jobs
from dinojax.data import eval_batches

CELLS_OF = 2  # each image; near neighbours mostly share one of two
TRAIN_ROWS = 64  # images of a centroid, at most, that k-means sees
ROUNDS = 20  # of k-means


@dataclasses.dataclass(frozen=True)
class Network:
  """A backbone and how images reach it, as in backbone_flags.py."""

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
def _load(network: Network):
  """A compiled function of uint8 images, once per process."""
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
  return functools.partial(apply, loaded.params)


def compute(part: jobs.Part, *, job: jobs.Job, network: Network) -> None:
  """Keeps the features of a part's images, of unit length or zeros; one task."""
  path = job.path("features", part.number)
  if path.exists():
    return
  rows = jobs.rows_of(job.survivors(part.number, before="embedding"))
  apply = _load(network)
  features = None
  records = list(inputs.read(part, job.settings, rows.tolist()))
  batches = eval_batches.open_batches(
    _Images(records),
    batch_size=network.batch_size,
    rows=range(network.batch_size),
    resize=network.resize,
    crop=network.crop,
    workers=0,
  )
  for batch in batches:
    found = np.asarray(apply(batch["image"]), np.float32)
    if features is None:
      features = np.zeros((len(job.rows(part.number)), found.shape[1]), np.float16)
    valid = batch["valid"]
    found = found[valid] / np.linalg.norm(found[valid], axis=1, keepdims=True)
    features[rows[batch["index"][valid]]] = found
  if features is None:  # nothing of this part is left
    width = np.asarray(apply(np.zeros((1, network.crop, network.crop, 3), np.uint8)))
    features = np.zeros((len(job.rows(part.number)), width.shape[1]), np.float16)
  job.save(path, features)


def features_of(job: jobs.Job, ids: np.ndarray) -> np.ndarray:
  """Features of images, float32 [n, D]."""

  def read(number):
    return np.load(job.path("features", number), mmap_mode="r")

  return jobs.gather(ids, read).astype(np.float32)


def alike(job: jobs.Job, a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Whether the embeddings of images are alike; ids uint64 [n] -> bool [n]."""
  ids, places = np.unique(np.concatenate([a, b]), return_inverse=True)
  features = features_of(job, ids)
  cosine = np.einsum("nd,nd->n", features[places[: len(a)]], features[places[len(a) :]])
  return cosine >= job.settings.near_cosine


def train(
  job: jobs.Job, parts: list[jobs.Part], *, name: str, clusters: int, before: str
) -> np.ndarray:
  """Centroids of the images that are in before a step, by k-means; [clusters, D]."""
  path = job.path("centroids", name)
  if path.exists():
    return np.load(path)
  ids = np.concatenate([job.survivors(part.number, before=before) for part in parts])
  clusters = min(clusters, len(ids))
  scattered = np.argsort(jobs.mix(ids, job.settings.seed), kind="stable")
  ids = np.sort(ids[scattered[: clusters * TRAIN_ROWS]])
  if not len(ids):
    raise errors.UserError("no image is left to embed; manifest and report tell why")
  faiss.omp_set_num_threads(1)  # more of them may add up in another order
  kmeans = faiss.Kmeans(
    features_of(job, ids).shape[1],
    clusters,
    niter=ROUNDS,
    seed=job.settings.seed,
    spherical=True,
    min_points_per_centroid=1,
    max_points_per_centroid=TRAIN_ROWS,
  )
  kmeans.train(features_of(job, ids))
  job.save(path, kmeans.centroids)
  return kmeans.centroids


def assign(features: np.ndarray, centroids: np.ndarray, count: int) -> np.ndarray:
  """The nearest centroids of features; int64 [n, count]."""
  faiss.omp_set_num_threads(1)
  index = faiss.IndexFlatIP(centroids.shape[1])
  index.add(centroids)
  return index.search(features, min(count, len(centroids)))[1]


def candidates(
  job: jobs.Job, parts: list[jobs.Part], images: int, options
) -> np.ndarray:
  """Pairs, collisions.PAIR in order, of embeddings that are alike and share a cell."""
  done = job.path("embedding", "pairs")
  if done.exists():
    return np.load(done)
  cells = math.isqrt(images)
  train(job, parts, name="cells", clusters=cells, before="embedding")
  engine.grouped(
    functools.partial(_emit, job=job),
    functools.partial(_reduce, job=job),
    parts,
    options=options,
    label="neighbours of embeddings",
    count=engine.files_in(job.work / "cells"),
  )
  pairs = collisions.merge(job.work / "cells")
  job.save(done, pairs)
  return pairs


def _emit(part: jobs.Part, *, job: jobs.Job) -> Iterator[tuple[int, bytes]]:
  ids = job.survivors(part.number, before="embedding")
  if not len(ids):
    return
  centroids = np.load(job.path("centroids", "cells"))
  cells = assign(features_of(job, ids), centroids, CELLS_OF)
  ids = np.repeat(ids, cells.shape[1])
  yield from collisions.group(ids, cells.ravel())


def _reduce(key: int, blobs, *, job: jobs.Job) -> None:
  ids = np.sort(np.frombuffer(b"".join(blobs), np.uint64))
  features = features_of(job, ids)
  faiss.omp_set_num_threads(1)
  index = faiss.IndexFlatIP(features.shape[1])
  index.add(features)
  # A little below, since float32 sums may round apart; `alike` decides.
  limits, _, other = index.range_search(features, job.settings.near_cosine - 1e-4)
  first = np.repeat(np.arange(len(ids)), np.diff(limits.astype(np.int64)))
  ahead = first < other
  job.save(
    job.path("cells", f"{key}"), collisions.pair(ids[first[ahead]], ids[other[ahead]])
  )


def cluster(part: jobs.Part, *, job: jobs.Job) -> None:
  """Keeps the cluster of each image that is left of a part; one task."""
  path = job.path("clusters", part.number)
  if path.exists():
    return
  ids = job.survivors(part.number, before="sample")
  found = np.empty(0, np.int64)
  if len(ids):
    centroids = np.load(job.path("centroids", "clusters"))
    found = assign(features_of(job, ids), centroids, 1)[:, 0]
  job.save(path, found)


def sample(job: jobs.Job, parts: list[jobs.Part], options) -> None:
  """Keeps `job.settings.sample` images, as evenly over the clusters as they allow."""
  path = job.path("drop", "sample")
  if path.exists():
    return
  parts = [part for part in parts if not part.excluded]
  train(job, parts, name="clusters", clusters=job.settings.clusters, before="sample")
  engine.each(
    functools.partial(cluster, job=job),
    parts,
    options=options,
    label="clusters",
    count=engine.files_in(job.work / "clusters"),
  )
  ids = np.concatenate([job.survivors(part.number, before="sample") for part in parts])
  clusters = np.concatenate(
    [np.load(job.path("clusters", part.number)) for part in parts]
  )
  keep = evenly(clusters, jobs.mix(ids, job.settings.seed), job.settings.sample)
  drops = np.zeros(int((~keep).sum()), jobs.DROP)
  drops["id"] = drops["kept"] = ids[~keep]
  drops["reason"] = jobs.REASON["not sampled"]
  job.save(path, drops)


def evenly(clusters: np.ndarray, lots: np.ndarray, wanted: int) -> np.ndarray:
  """Which images to keep: of every cluster as many, or all of a smaller one.

  Args:
    clusters: int64 [n], of each image.
    lots: uint64 [n], drawn; the lowest of a cluster are kept.
    wanted: images to keep; where clusters cannot share them evenly, the lots decide.

  Returns:
    bool [n], of which min(wanted, n) are True.
  """
  order = np.lexsort((lots, clusters))
  starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
  sizes = np.diff(np.append(starts, len(order)))
  turn = np.empty(len(order), np.int64)  # an image's place in its cluster
  turn[order] = np.arange(len(order)) - np.repeat(starts, sizes)
  keep = np.zeros(len(order), bool)
  keep[np.lexsort((lots, turn))[:wanted]] = True  # one of each cluster, turn by turn
  return keep
