"""Near-duplicate removal (deduplication): of each cluster of duplicates, who is kept.

Candidate pairs are compared; those that are confirmed join images to clusters. The
largest image of a cluster is kept, and its duplicates are dropped; then the largest of
those that are left, and so on. So every dropped image is a direct duplicate of a kept
one, however long the chain of a cluster may be. Both steps run in tasks of many pairs
or clusters, which read what they compare from the files.
"""

import functools
import itertools
from collections.abc import Callable

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from dinojax.curation import candidates, engine, fingerprints, jobs

TASK_PAIRS = 500_000
TASK_IMAGES = 200_000  # but for one cluster that is larger


def drop_duplicates(
  job: jobs.Job,
  parts: list[jobs.Part],
  pairs: np.ndarray,
  options,
  *,
  step: str,
  reason: str,
  is_duplicate: Callable,
) -> None:
  """Drops images that are duplicates of another one, given candidate pairs.

  Args:
    job: the ingest, whose drops of `step` are written.
    parts: all of its parts.
    pairs: candidates.PAIR in order.
    options: Beam's.
    step: of jobs.STEPS.
    reason: of jobs.REASONS.
    is_duplicate: (job, ids, ids) -> bool, whether images are duplicates, by element.
  """
  path = job.path("drop", step)
  if path.exists():
    return
  tasks = [
    (i, min(i + TASK_PAIRS, len(pairs))) for i in range(0, len(pairs), TASK_PAIRS)
  ]
  job.save(job.path(step, "candidates"), pairs)

  def run_tasks(function, tasks, folder, dtype, label):
    """Runs tasks that write a file each to `folder`; returns what all files hold."""
    count_done = engine.file_counter(job.work / folder)
    engine.run_tasks(
      function, tasks, options=options, label=label, count_done=count_done
    )
    found = [np.load(job.path(folder, start)) for start, _ in tasks]
    return np.concatenate([np.empty(0, dtype), *found])

  confirmed = run_tasks(
    functools.partial(_confirm, job=job, step=step, is_duplicate=is_duplicate),
    tasks,
    f"{step}-confirmed",
    candidates.PAIR,
    f"comparing {len(pairs):,} pairs",
  )
  members, clusters = connected_clusters(confirmed)
  excluded = frozenset(part.number for part in parts if part.excluded)
  job.save(job.path(step, "members"), members)
  job.save(job.path(step, "clusters"), clusters)
  drops = run_tasks(
    functools.partial(
      choose_drops,
      job=job,
      step=step,
      reason=reason,
      is_duplicate=is_duplicate,
      excluded=excluded,
    ),
    cluster_spans(clusters),
    f"{step}-chosen",
    jobs.DROP,
    f"choosing among {len(members):,} duplicates",
  )
  job.save(path, np.sort(drops, order="id"))


def same_thumbnails(job: jobs.Job, a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Whether thumbnails show the same image; ids uint64 [n] -> bool [n]."""
  ids, places = np.unique(np.concatenate([a, b]), return_inverse=True)
  thumbs = jobs.gather(ids, lambda number: job.rows(number)["thumb"])
  a, b = places[: len(a)], places[len(a) :]
  return fingerprints.same_image(thumbs[a], thumbs[b], job.settings.near_difference)


def connected_clusters(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Images that pairs join, by cluster: ids uint64 [n], and cluster int64 [n]."""
  ids, places = np.unique(np.concatenate([pairs["a"], pairs["b"]]), return_inverse=True)
  a, b = places[: len(pairs)], places[len(pairs) :]
  graph = sparse.coo_array((np.ones(len(a), bool), (a, b)), shape=(len(ids),) * 2)
  _, cluster = csgraph.connected_components(graph, directed=False)
  order = np.argsort(cluster, kind="stable")
  return ids[order], cluster[order].astype(np.int64)


def _confirm(span: tuple[int, int], *, job: jobs.Job, step: str, is_duplicate) -> None:
  path = job.path(f"{step}-confirmed", span[0])
  if not path.exists():
    pairs = np.load(job.path(step, "candidates"), mmap_mode="r")[slice(*span)]
    job.save(path, pairs[is_duplicate(job, pairs["a"], pairs["b"])])


def cluster_spans(clusters: np.ndarray) -> list[tuple[int, int]]:
  """Spans of whole clusters, of about TASK_IMAGES images each."""
  starts = np.flatnonzero(np.diff(clusters, prepend=-1))
  bounds = starts[np.unique(starts // TASK_IMAGES, return_index=True)[1]].tolist()
  return list(itertools.pairwise([*bounds, len(clusters)]))


def choose_drops(
  span: tuple[int, int],
  *,
  job: jobs.Job,
  step: str,
  reason: str,
  is_duplicate,
  excluded: frozenset[int],
) -> None:
  """Drops the duplicates of a better image of their cluster; one task of a span."""
  path = job.path(f"{step}-chosen", span[0])
  if path.exists():
    return
  members = np.load(job.path(step, "members"), mmap_mode="r")[slice(*span)]
  clusters = np.load(job.path(step, "clusters"), mmap_mode="r")[slice(*span)]
  is_excluded = np.isin(jobs.parts_of(members), list(excluded))
  size = jobs.gather(members, lambda number: _pixels(job.rows(number)))
  # Of each cluster excluded images first, then the largest, then the first.
  order = np.lexsort((members, -size, ~is_excluded, clusters))
  members, clusters, is_excluded = members[order], clusters[order], is_excluded[order]
  drops = np.zeros(len(members), jobs.DROP)
  drops["id"] = members
  # In each round the best image that is left of every cluster is kept, and its
  # duplicates are dropped.
  left = np.arange(len(members))
  while len(left):
    begins = np.append(True, clusters[left][1:] != clusters[left][:-1])
    leaders = left[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    left, leaders = left[~begins], leaders[~begins]
    near = begins[:0]
    if len(left):
      near = is_duplicate(job, members[left], members[leaders])
    dropped = near & ~is_excluded[left]
    drops["match"][left[dropped]] = members[leaders[dropped]]
    drops["reason"][left[dropped]] = np.where(
      is_excluded[leaders[dropped]],
      jobs.REASON["in an excluded set"],
      jobs.REASON[reason],
    )
    left = left[~dropped]
  job.save(path, drops[drops["reason"] > 0])


def _pixels(rows: np.ndarray) -> np.ndarray:
  return rows["width"].astype(np.int64) * rows["height"]
