"""Files of a run, read for its page: metrics, events, config, checkpoints.

Free of JAX, and of any trust in the files: a kill may have cut them off, and an older
version wrote fewer fields. What is not there is None, or an empty list.
"""

import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from dinojax import errors
from dinojax.reporting import events

TEACHER = "trained teacher"  # in `knn.Evaluation.compare`
EVALUATION = "eval_"  # in front of what evaluate.py adds to a run's metrics
MAX_LINE = 1_000_000  # bytes; what is longer is no line of metrics
MAX_STEP = 2**53  # beyond, JavaScript does not count


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
    config: as in config.json; None if it cannot be read.
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

  def field(self, path: str, default: Any = None) -> Any:
    """The value at a dotted path of the config, such as "data.batch_size"."""
    value = self.config
    for name in path.split("."):
      if not isinstance(value, dict) or name not in value:
        return default
      value = value[name]
    return value

  def last_event(self, *kinds: str) -> dict[str, Any] | None:
    """The newest event, or the newest of some kinds."""
    found = [x for x in self.events if not kinds or x["event"] in kinds]
    return found[-1] if found else None

  def value(self, name: str) -> float | None:
    """The newest value of a series; None if there is none."""
    series = self.series.get(name)
    return float(series.values[-1]) if series else None

  def baselines(self, name: str) -> dict[str, float]:
    """{"raw pixels": share, ...} of a number of k-NN, where others were measured."""
    results = (self.last_event("comparison") or {}).get("results")
    if not isinstance(results, dict):
      return {}
    return {
      title: accuracy[name]
      for title, accuracy in results.items()
      if title != TEACHER
      and isinstance(accuracy, dict)
      and _number(accuracy, name) is not None
    }

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
    steps += [ended["step"]] if ended and isinstance(ended.get("step"), int) else []
    return max([*steps, *self.checkpoints], default=0)

  @property
  def total_steps(self) -> int | None:
    """Of the newest start, or of the config."""
    total = _number(self.last_event("start"), "total_steps")
    return int(total) if total else self.field("total_steps")

  @property
  def alarm_window(self) -> int | None:
    """Steps whose mean loss is judged."""
    return self.field("alarm_window")

  @property
  def last_sign(self) -> float:
    """When the run last wrote something, in seconds since 1970."""
    times = [series.times[-1] for series in self.series.values()]
    times += [event["time"] for event in self.events]
    known = [time for time in times if math.isfinite(time)]
    return max(known, default=self.modified)

  @property
  def batch_size(self) -> int | None:
    """Images of a step."""
    return self.field("data.batch_size")


def _number(event, name) -> float | None:
  value = _float((event or {}).get(name))
  return value if value is not None and math.isfinite(value) else None


def _float(value) -> float | None:
  """A number of a file as a float; None if it is none."""
  if not isinstance(value, (int, float)) or isinstance(value, bool):
    return None
  return float(value) if abs(value) < sys.float_info.max else math.inf


def read(workdir: pathlib.Path) -> Run:
  """Reads the files of a workdir.

  Raises:
    UserError: it is no workdir of a run, or cannot be read.
  """
  names = ("metrics.jsonl", "config.json", events.NAME, "checkpoints")
  try:
    if not any((workdir / name).exists() for name in names):
      raise errors.UserError(
        f"--workdir={workdir} holds no run: there is neither metrics.jsonl nor"
        " config.json; give the config.workdir of a training"
      )
    series, evaluations, not_finite, logged = _read_metrics(workdir / "metrics.jsonl")
    checkpoints, damaged = _read_checkpoints(workdir / "checkpoints")
    happened = [
      line
      for line in _lines(workdir / events.NAME)
      if isinstance(line.get("event"), str) and _number(line, "time") is not None
    ]
    happened.sort(key=lambda line: line["time"])
    starts = [line for line in happened if line["event"] == "start"]
    return Run(
      path=workdir,
      label=workdir.resolve().name,
      config=_read_config(workdir / "config.json"),
      series=series,
      evaluations=evaluations,
      events=happened,
      checkpoints=checkpoints,
      damaged=damaged,
      not_finite=not_finite,
      logged=logged,
      modified=_modified(workdir / "metrics.jsonl"),
      nothing_learnt=_number(starts[-1] if starts else None, "nothing_learnt"),
    )
  except OSError as error:
    raise errors.of_disk(error)(
      f"--workdir={workdir} cannot be read: {error.strerror or error}"
    ) from error


def _lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """JSON objects of a file, one a line; what a kill has cut off is left out."""
  if not path.exists():
    return
  with path.open("rb") as file:
    for line in file:
      try:
        found = json.loads(line) if len(line) < MAX_LINE else None
      except (ValueError, RecursionError):
        continue
      if isinstance(found, dict):
        yield found


def _read_metrics(path):
  columns: dict[str, tuple[list, list, list]] = {}
  evaluations, not_finite, logged = [], {}, 0
  for line in _lines(path):
    step, time = line.pop("step", None), line.pop("time", math.nan)
    if type(step) is not int or not 0 <= step < MAX_STEP:  # bool is none
      continue
    if any(name.startswith(EVALUATION) for name in line):
      evaluations.append({"step": step, **line})
      continue
    logged += "loss" in line
    time = _float(time) or math.nan
    for name, text in line.items():
      value = _float(text)
      if value is None:
        continue
      if not math.isfinite(value):
        not_finite[name] = None
        continue
      steps, values, times = columns.setdefault(name, ([], [], []))
      if steps and step <= steps[-1]:
        if step == steps[-1]:  # evaluated again
          values[-1], times[-1] = value, time
        continue
      steps.append(step)
      values.append(value)
      times.append(time)
  series = {
    name: Series(np.array(steps), np.array(values, float), np.array(times, float))
    for name, (steps, values, times) in columns.items()
  }
  return series, evaluations, list(not_finite), logged


def _modified(path: pathlib.Path) -> float:
  return path.stat().st_mtime if path.exists() else 0.0


def _read_config(path: pathlib.Path) -> dict[str, Any] | None:
  try:
    found = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError):
    return None
  return found if isinstance(found, dict) else None


def _read_checkpoints(folder: pathlib.Path) -> tuple[dict[int, float], list[str]]:
  if not folder.is_dir():
    return {}, []
  entries = sorted(folder.iterdir())
  steps = {
    int(path.name): path.stat().st_mtime for path in entries if path.name.isdecimal()
  }
  damaged = [path.name for path in entries if path.name.startswith("damaged-")]
  return dict(sorted(steps.items())), damaged
