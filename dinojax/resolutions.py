"""Resolutions of a run: rows of crop sizes, and the row of each step.

In DINOv3's high-resolution stage each step draws one row of config.resolutions: all its
crops have the sizes of that row. So a run needs one program for each row. To the input,
the plan and the compiler a row is a config of its own: the run's, with other sizes.
"""

import math
from collections.abc import Sequence

import numpy as np

from dinojax import errors

FIELDS = {"share": (int, float)} | dict.fromkeys(
  ("global_size", "local_size", "gram_size"), (int,)
)


def configs(config) -> list:
  """A config of one resolution for each row; the run's own where it has no rows."""
  rows = []
  for row in config.resolutions:
    one = config.copy_and_resolve_references()
    with one.unlocked():
      one.resolutions = ()
      for kind in ("global1", "global2"):
        one.augment[kind].size = row["global_size"]
      one.augment.local.size = row["local_size"]
      one.gram.crop_size = row["gram_size"]
    rows.append(one)
  return rows or [config]


def shares(config) -> list[float]:
  """The probability of each row, as many as `configs`."""
  return [row["share"] for row in config.resolutions] or [1.0]


def row_of(step: int, *, seed: int, shares: Sequence[float]) -> int:
  """The row that is drawn for a step, from the seed and the step alone.

  Args:
    step: completed updates before it.
    seed: `config.seed`.
    shares: probability of each row; they add up to 1.
  """
  # A stream of its own for each step: no other draw of the run moves.
  rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step,)))
  return int(np.searchsorted(np.cumsum(shares)[:-1], rng.random(), side="right"))


def describe(config) -> list[str]:
  """A line for each row: its share and its sizes in pixels."""
  lines = []
  for row in config.resolutions:
    gram = f", Gram of {row['gram_size']}" if row["gram_size"] else ""
    sizes = f"{row['global_size']} and {row['local_size']}{gram} pixels"
    lines.append(f"{row['share']:.4g} of the steps: crops of {sizes}")
  return lines


def check(config) -> None:
  """Raises UserError for the first row that cannot work, or if their shares cannot."""
  for i, row in enumerate(config.resolutions):
    _check_row(row, f"config.resolutions[{i}]", config)
  if not config.resolutions:
    return
  whole = sum(shares(config))
  if abs(whole - 1) > 1e-6:
    raise errors.UserError(
      f"config.resolutions: the rows' shares add up to {whole:.6g}, and must to 1"
    )
  sizes = {
    "global_size": config.augment.global1.size,
    "local_size": config.augment.local.size,
    "gram_size": config.gram.crop_size,
  }
  first = config.resolutions[0]
  if sizes != {name: first[name] for name in sizes}:
    raise errors.UserError(
      f"config.resolutions[0]={first} must have the sizes of config.augment and"
      f" config.gram.crop_size, which previews show: {sizes}"
    )


def _check_row(row, path, config):
  kinds = {name: type(x) for name, x in row.items()} if isinstance(row, dict) else {}
  if kinds.keys() != FIELDS.keys() or any(kinds[k] not in FIELDS[k] for k in FIELDS):
    raise errors.UserError(
      f"{path}={row} must be a dict of {', '.join(FIELDS)}: numbers, sizes in pixels"
    )
  if not 0 < row["share"] <= 1:
    raise errors.UserError(f"{path}.share={row['share']} must be within (0, 1]")
  patch = config.backbone.patch_size
  for name in ("global_size", "local_size"):
    if (size := row[name]) < patch or size % patch:
      raise errors.UserError(
        f"{path}.{name}={size} must be a multiple of config.backbone.patch_size="
        f"{patch}; try {max(math.ceil(size / patch), 1) * patch}"
      )
  size, least, teacher = row["gram_size"], row["global_size"], config.gram.teacher
  if size and (not teacher or size < least or size % patch):
    raise errors.UserError(
      f"{path}.gram_size={size} must be 0, or a multiple of config.backbone.patch_size="
      f"{patch} from its global_size={least} on, with a config.gram.teacher; try"
      f" {least + least // 2 // patch * patch if teacher else 0}"
    )
