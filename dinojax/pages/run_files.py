"""Files of a run, read for its page: metrics, events, config, checkpoints.

Free of JAX, and of any trust in the files: a kill may have cut them off, and an older
version wrote fewer fields. What is not there is None, or an empty list.
"""

import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from dinojax import errors, students
from dinojax.pages import run_record
from dinojax.reporting import events

EVALUATION = "eval_"  # in front of what evaluate.py adds to a run's metrics
MAX_LINE = 1_000_000  # bytes; what is longer is no line of metrics
MAX_STEP = 2**53  # beyond, JavaScript does not count
TEXTS = ("text", "signal", "data", "device", "extended")  # of events
MAX_TIME = 1e11  # seconds since 1970


def read(workdir: pathlib.Path) -> run_record.Run:
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
        f"{students.instead_of(workdir)}"
      )
    series, evaluations, not_finite, logged = _read_metrics(workdir / "metrics.jsonl")
    checkpoints, damaged = _read_checkpoints(workdir / "checkpoints")
    happened = _read_events(workdir / events.NAME)
    starts = [line for line in happened if line["event"] == "start"]
    return run_record.Run(
      path=workdir,
      label=workdir.resolve().name,
      config=_read_config(workdir / "config.json") or _of_finetuning(starts),
      series=series,
      evaluations=evaluations,
      events=happened,
      checkpoints=checkpoints,
      damaged=damaged,
      not_finite=not_finite,
      logged=logged,
      modified=_modified(workdir / "metrics.jsonl"),
      nothing_learnt=run_record.field(starts[-1] if starts else None, "nothing_learnt"),
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
    if not _is_step(step):
      continue
    if any(name.startswith(EVALUATION) for name in line):
      evaluations.append({"step": step, **line})
      continue
    logged += "loss" in line
    time = time if _is_time(time) else math.nan
    for name, value in line.items():
      if not isinstance(value, (int, float)) or isinstance(value, bool):
        continue
      if (value := run_record.number(value)) is None:
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
    name: run_record.Series(
      np.array(steps), np.array(values, float), np.array(times, float)
    )
    for name, (steps, values, times) in columns.items()
  }
  return series, evaluations, list(not_finite), logged


def _modified(path: pathlib.Path) -> float:
  return path.stat().st_mtime if path.exists() else 0.0


def _read_events(path: pathlib.Path) -> list[dict[str, Any]]:
  """Events in order of time; of each, what is not of its kind is left out."""
  found = []
  for line in _lines(path):
    if not isinstance(line.get("event"), str) or not _is_time(line.get("time")):
      continue
    if not _is_step(line.get("step", 0)):
      del line["step"]
    found.append({k: v for k, v in line.items() if k not in TEXTS or _is_text(v)})
  return sorted(found, key=lambda line: line["time"])


def _is_step(value: Any) -> bool:
  return type(value) is int and 0 <= value < MAX_STEP  # a bool is none


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _is_time(value: Any) -> bool:
  found = run_record.number(value)
  return found is not None and 0 < found < MAX_TIME


def _read_config(path: pathlib.Path) -> dict[str, Any] | None:
  try:
    found = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError):
    return None
  return found if isinstance(found, dict) else None


def _of_finetuning(starts) -> dict[str, Any] | None:
  """What a fine-tuning, which has no config, says of itself as it starts."""
  found = starts[-1].get("finetune") if starts else None
  return {"finetune": found} if isinstance(found, dict) else None


def _read_checkpoints(folder: pathlib.Path) -> tuple[dict[int, float], list[str]]:
  if not folder.is_dir():
    return {}, []
  entries = sorted(folder.iterdir())
  steps = {
    int(path.name): path.stat().st_mtime for path in entries if path.name.isdecimal()
  }
  damaged = [path.name for path in entries if path.name.startswith("damaged-")]
  return dict(sorted(steps.items())), damaged
