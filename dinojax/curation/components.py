"""Which of the images that look alike stay: of each crowd, the largest.

Candidate pairs are compared; pairs that are alike join to crowds; in each crowd, the
best image stays, and what is alike to one that stays goes. So every image that goes is
directly alike to one that stays, however long the chain of a crowd may be. Both are
done in tasks of many pairs or crowds, which read what they compare from the files.
"""

import functools
import itertools
from collections.abc import Callable

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from dinojax.curation import collisions, engine, fingerprints, jobs

PAIRS = 500_000  # of a task
MEMBERS = 200_000  # images of a task, but for one crowd that is larger


def settle(
  job: jobs.Job,
  parts: list[jobs.Part],
  pairs: np.ndarray,
  options,
  *,
  step: str,
  reason: str,
  compare: Callable,
) -> None:
  """Drops what is alike to another image, by candidate pairs.

  Args:
    job: whose drops of `step` are written.
    parts: all of them.
    pairs: collisions.PAIR in order.
    options: Beam's.
    step: of jobs.STEPS.
    reason: of jobs.REASONS.
    compare: (job, ids, ids) -> bool, whether images are alike, element by element.
  """
  path = job.path("drop", step)
  if path.exists():
    return
  tasks = [(i, min(i + PAIRS, len(pairs))) for i in range(0, len(pairs), PAIRS)]
  candidates = job.path(step, "candidates")
  job.save(candidates, pairs)

  def results(function, tasks, folder, kind, label):
    """Of each task a file of `folder`; what all of them hold."""
    count = engine.files_in(job.work / folder)
    engine.each(function, tasks, options=options, label=label, count=count)
    found = [np.load(job.path(folder, start)) for start, _ in tasks]
    return np.concatenate([np.empty(0, kind), *found])

  alike = results(
    functools.partial(_check, job=job, step=step, compare=compare),
    tasks,
    f"{step}-alike",
    collisions.PAIR,
    f"comparing {len(pairs):,} pairs",
  )
  members, crowds = crowds_of(alike)
  excluded = frozenset(part.number for part in parts if part.excluded)
  job.save(job.path(step, "members"), members)
  job.save(job.path(step, "crowds"), crowds)
  drops = results(
    functools.partial(
      choose, job=job, step=step, reason=reason, compare=compare, excluded=excluded
    ),
    spans_of(crowds),
    f"{step}-chosen",
    jobs.DROP,
    f"choosing among {len(members):,} images",
  )
  job.save(path, np.sort(drops, order="id"))


def thumbs_alike(job: jobs.Job, a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Whether thumbnails of images are alike; ids uint64 [n] -> bool [n]."""
  ids, places = np.unique(np.concatenate([a, b]), return_inverse=True)
  thumbs = jobs.gather(ids, lambda number: job.rows(number)["thumb"])
  a, b = places[: len(a)], places[len(a) :]
  return fingerprints.alike(thumbs[a], thumbs[b], job.settings.near_difference)


def crowds_of(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Images that pairs join, crowd by crowd: ids uint64 [n], and crowd int64 [n]."""
  ids, places = np.unique(np.concatenate([pairs["a"], pairs["b"]]), return_inverse=True)
  a, b = places[: len(pairs)], places[len(pairs) :]
  graph = sparse.coo_array((np.ones(len(a), bool), (a, b)), shape=(len(ids),) * 2)
  _, crowd = csgraph.connected_components(graph, directed=False)
  order = np.argsort(crowd, kind="stable")
  return ids[order], crowd[order].astype(np.int64)


def _check(span: tuple[int, int], *, job: jobs.Job, step: str, compare) -> None:
  path = job.path(f"{step}-alike", span[0])
  if not path.exists():
    pairs = np.load(job.path(step, "candidates"), mmap_mode="r")[slice(*span)]
    job.save(path, pairs[compare(job, pairs["a"], pairs["b"])])


def spans_of(crowds: np.ndarray) -> list[tuple[int, int]]:
  """Spans of whole crowds of about MEMBERS images."""
  starts = np.flatnonzero(np.diff(crowds, prepend=-1))
  bounds = starts[np.unique(starts // MEMBERS, return_index=True)[1]].tolist()
  return list(itertools.pairwise([*bounds, len(crowds)]))


def choose(
  span: tuple[int, int],
  *,
  job: jobs.Job,
  step: str,
  reason: str,
  compare,
  excluded: frozenset[int],
) -> None:
  """Drops what is alike to a better image of its crowd; one task of whole crowds."""
  path = job.path(f"{step}-chosen", span[0])
  if path.exists():
    return
  members = np.load(job.path(step, "members"), mmap_mode="r")[slice(*span)]
  crowds = np.load(job.path(step, "crowds"), mmap_mode="r")[slice(*span)]
  is_excluded = np.isin(jobs.parts_of(members), list(excluded))
  size = jobs.gather(members, lambda number: _pixels(job.rows(number)))
  # Of each crowd excluded images first, then the largest, then the first.
  order = np.lexsort((members, -size, ~is_excluded, crowds))
  members, crowds, is_excluded = members[order], crowds[order], is_excluded[order]
  drops = np.zeros(len(members), jobs.DROP)
  drops["id"] = members
  # Round by round, the best that is left of every crowd stays, or goes to no one else,
  # and takes with it what is alike to it.
  left = np.arange(len(members))
  while len(left):
    begins = np.append(True, crowds[left][1:] != crowds[left][:-1])
    leaders = left[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    left, leaders = left[~begins], leaders[~begins]
    near = compare(job, members[left], members[leaders]) if len(left) else begins[:0]
    goes = near & ~is_excluded[left]
    drops["kept"][left[goes]] = members[leaders[goes]]
    drops["reason"][left[goes]] = np.where(
      is_excluded[leaders[goes]],
      jobs.REASON["in an excluded set"],
      jobs.REASON[reason],
    )
    left = left[~goes]
  job.save(path, drops[drops["reason"] > 0])


def _pixels(rows: np.ndarray) -> np.ndarray:
  return rows["width"].astype(np.int64) * rows["height"]
