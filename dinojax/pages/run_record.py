"""Record of a run: what its files say of it, and "not known" where they do not.

Free of JAX.
"""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

TEACHER = "trained teacher"  # in `knn.Evaluation.compare`
HUGE = 1e300  # what is larger is as good as infinite


@dataclasses.dataclass(frozen=True)
class Series:
  """One number over the run.

  steps: [n] int, completed updates, rising. values: [n] float, finite. times: [n]
  float, seconds since 1970; NaN where it was not logged.
  """

  steps: np.ndarray
  values: np.ndarray
  times: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
  """What a workdir holds.

  Attributes:
    path: the workdir.
    label: its name among those of a page.
    config: as in config.json, or {"finetune": settings}; None if it cannot be read.
    series: by name.
    evaluations: results of evaluate.py, as they stand in the metrics.
    events: see `events`, in order of time.
    checkpoints: {step: seconds since 1970} of those that are there.
    damaged: names of checkpoints that were set aside.
    not_finite: names of numbers that were left out of `series` as they are not finite.
    logged: lines of metrics of training.
    modified: when its metrics were last written, in seconds since 1970.
    nothing_learnt: DINO + iBOT loss of a student that has learnt nothing.
  """

  path: pathlib.Path
  label: str
  config: dict[str, Any] | None
  series: dict[str, Series]
  evaluations: list[dict[str, Any]]
  events: list[dict[str, Any]]
  checkpoints: dict[int, float]
  damaged: list[str]
  not_finite: list[str]
  logged: int
  modified: float
  nothing_learnt: float | None

  def field(self, path: str) -> Any:
    """The value at a dotted path of the config, such as "data.sources", or None."""
    value = self.config
    for name in path.split("."):
      value = value.get(name) if isinstance(value, dict) else None
    return value

  def count(self, path: str) -> int | None:
    """A field of the config that is a whole number above 0, or None."""
    found = number(self.field(path))
    return int(found) if found is not None and found >= 1 else None

  def last_event(self, *kinds: str) -> dict[str, Any] | None:
    """The newest event, or the newest of some kinds."""
    found = [x for x in self.events if not kinds or x["event"] in kinds]
    return found[-1] if found else None

  def steps_of(self, kind: str) -> list[int]:
    """Steps of the events of a kind, in order of time."""
    found = (event for event in self.events if event["event"] == kind)
    return [event["step"] for event in found if "step" in event]

  def value(self, name: str) -> float | None:
    """The newest value of a series; None if there is none."""
    series = self.series.get(name)
    return float(series.values[-1]) if series else None

  def baselines(self, name: str) -> dict[str, float]:
    """{"raw pixels": share, ...} of a number of k-NN, where others were measured."""
    results = (self.last_event("comparison") or {}).get("results")
    if not isinstance(results, dict):
      return {}
    shares = {
      title: field(accuracy, name)
      for title, accuracy in results.items()
      if title != TEACHER and isinstance(accuracy, dict)
    }
    return {title: share for title, share in shares.items() if share is not None}

  @property
  def evaluation_images(self) -> tuple[int, int] | None:
    """Images of config.knn.train and of .test; None if the run did not log them."""
    found = (self.last_event("start") or {}).get("evaluation_images")
    if not isinstance(found, dict):
      return None
    counts = tuple(int(field(found, name) or 0) for name in ("train", "test"))
    return counts if min(counts) > 0 else None

  def best_knn(self) -> tuple[str, int, float] | None:
    """(name, step, share) of the best k-NN top-1; None if none was measured."""
    best = None
    for name, series in self.series.items():
      i = int(series.values.argmax())
      if name.startswith("knn_top1") and (best is None or series.values[i] > best[2]):
        best = (name, int(series.steps[i]), float(series.values[i]))
    return best

  @property
  def step(self) -> int:
    """Completed updates, as far as files say."""
    steps = [int(series.steps[-1]) for series in self.series.values()]
    ended = self.last_event("done", "interrupted", "failed", "checkpoint")
    steps += [ended["step"]] if ended and "step" in ended else []
    return max([*steps, *self.checkpoints], default=0)

  @property
  def total_steps(self) -> int | None:
    """Of the newest start, or of the config."""
    total = field(self.last_event("start"), "total_steps")
    return int(total) if total else self.count("total_steps")

  @property
  def alarm_window(self) -> int | None:
    """Steps whose mean loss is judged."""
    return self.count("alarm_window")

  @property
  def batch_size(self) -> int | None:
    """Images of a step; of a fine-tuning, too."""
    return self.count("data.batch_size") or self.count("finetune.batch_size")

  @property
  def last_sign(self) -> float:
    """When the run last wrote something, in seconds since 1970."""
    times = [series.times[-1] for series in self.series.values()]
    times += [event["time"] for event in self.events]
    known = [float(time) for time in times if math.isfinite(time)]
    return max(known, default=self.modified)


def field(found: dict[str, Any] | None, name: str) -> float | None:
  """A number of an event; None if it has none."""
  return number((found or {}).get(name))


def number(value: Any) -> float | None:
  """A number of a file; None if it is none, or is too large to reckon with."""
  if not isinstance(value, (int, float)) or isinstance(value, bool):
    return None
  return float(value) if abs(value) < HUGE else None
