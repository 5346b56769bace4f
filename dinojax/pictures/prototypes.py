"""Prototypes of a projection head: which images and patches each of them takes most.

Dimension key: M images or patches, D width, K prototypes, C of them that are shown.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dinojax import sharding
from dinojax.networks import heads

ROWS = 256  # whose logits are in memory at a time, or the next multiple of devices


class Head(NamedTuple):
  """A projection head with its weights."""

  module: heads.DINOHead
  params: Any


class Taken(NamedTuple):
  """What prototypes take most.

  prototypes: int [C], those that are nearest to most rows, the first to most. counts:
  int [C], rows nearest to each. rows: int [C, k], those with the largest logits of each
  prototype, from the largest on. used: prototypes that are the nearest of some row.
  total: K.
  """

  prototypes: np.ndarray
  counts: np.ndarray
  rows: np.ndarray
  used: int
  total: int


def open_heads(teacher: dict, *, dtype: str) -> dict[str, Head]:
  """{"dino": head, "ibot": head} of a teacher's weights; {} of a backbone alone.

  "ibot" is the same head where both losses share one.

  Args:
    teacher: perhaps with "dino_head" and "ibot_head".
    dtype: of matrix products.
  """
  if "dino_head" not in teacher:
    return {}
  opened = {}
  for name in ("dino", "ibot"):
    params = teacher.get(f"{name}_head", teacher["dino_head"])
    weight_norm = "v" in params["prototypes"]
    last = params["prototypes"]["v" if weight_norm else "kernel"]
    bottleneck, prototypes = last.shape
    hidden = params["fc1"]["kernel"].shape[1]
    fields = dict(dtype=dtype, weight_norm=weight_norm)
    opened[name] = Head(
      heads.DINOHead(hidden, bottleneck, prototypes, **fields), params
    )
  return opened


def most_taken(
  head: Head, rows: np.ndarray, *, shown: int, count: int, devices: int
) -> Taken:
  """The prototypes that take most rows, and the rows that each of them takes most.

  A row is nearest to the prototype of its largest logit, that is the teacher's cosine
  times the prototype's gain. Of several processes all call it at one time.

  Args:
    head: of `open_heads`.
    rows: [M, D] float32, image features or patch tokens, finite.
    shown: C; fewer where fewer prototypes are the nearest of any row.
    count: k; M where it is less.
    devices: of the mesh in context.
  """
  count = min(count, len(rows))
  size = -(-ROWS // devices) * devices
  nearest = _by_rows(functools.partial(_nearest, head.module, head.params), rows, size)
  totals = np.bincount(nearest, minlength=head.module.prototypes)
  order = np.argsort(-totals, kind="stable")[:shown]
  prototypes = order[totals[order] > 0]
  logits = _by_rows(
    functools.partial(_some_logits, head.module, head.params, prototypes), rows, size
  )
  best = np.argsort(-logits, axis=0, kind="stable")[:count].T
  used = int((totals > 0).sum())
  return Taken(prototypes, totals[prototypes], best, used, len(totals))


def _by_rows(function, rows: np.ndarray, size: int) -> np.ndarray:
  """A function of [size, D] for all rows."""
  padded = np.pad(rows, [[0, -len(rows) % size], [0, 0]])
  parts = [function(padded[i : i + size]) for i in range(0, len(padded), size)]
  return np.concatenate([np.asarray(part) for part in parts])[: len(rows)]


@functools.partial(jax.jit, static_argnums=0)
def _nearest(module, params, rows):
  logits = module.apply({"params": params}, rows)
  return sharding.gather(logits.argmax(-1))


@functools.partial(jax.jit, static_argnums=0)
def _some_logits(module, params, prototypes, rows):
  logits = module.apply({"params": params}, rows)
  return sharding.gather(jnp.take(logits, prototypes, axis=-1))
