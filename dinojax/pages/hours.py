"""Hours at work of a run, by step: without pauses between its starts. Free of JAX."""

import numpy as np

from dinojax.pages import run_record


def hours_at_work(run: run_record.Run) -> tuple[np.ndarray, np.ndarray] | None:
  """(steps [n], hours [n]), rising; None if the run has not logged all times.

  The time before a step counts from the step before it, or from the start in between.
  Steps that were lost in a crash, and repeated, count once.
  """
  series = run.series.get("loss")
  if series is None or not np.isfinite(series.times).all():
    return None  # an older version has logged some of it, or all
  steps, times = series.steps, series.times
  starts = np.array([x["time"] for x in run.events if x["event"] == "start"])
  before = np.append(starts[:1] if len(starts) else times[:1], times[:-1])
  if len(starts):
    newest = np.searchsorted(starts, times, side="right") - 1
    before = np.where(newest < 0, before, np.maximum(before, starts[newest]))
  return steps, np.cumsum(np.maximum(times - before, 0)) / 3600


def restarts(run: run_record.Run) -> list[int]:
  """Steps from which the run was started again, in order of time."""
  starts = [x for x in run.events if x["event"] == "start"]
  return [x["step"] for x in starts[1:] if "step" in x]
