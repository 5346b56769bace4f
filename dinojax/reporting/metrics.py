"""Metrics of a run: JSON lines, TensorBoard events, alarms, the progress bar.

Process 0 alone writes and prints.
"""

import contextlib
import json
import math
import os
import pathlib
import time
import types
from collections.abc import Mapping

import jax

from dinojax import errors
from dinojax.reporting import console, throughput

SECONDS_BETWEEN_SYNCS = 60  # of files of metrics


def first_non_finite(scalars: dict[str, float]) -> str | None:
  """Name of the first scalar that is infinite or not a number."""
  return next((name for name, x in scalars.items() if not math.isfinite(x)), None)


class Writer:
  """Scalars to WORKDIR/metrics.jsonl and to TensorBoard events in WORKDIR/tensorboard.

  A line is {"step": completed updates, name: value, ...}. It is written at once, so a
  killed run loses none. `sync` makes a mounted bucket upload it, once a minute.
  """

  def __init__(self, workdir: str, *, start_step: int | None):
    """Opens the files; drops what was logged after `start_step`, where a run resumes.

    None drops nothing: for results that are added to those of a run, even a live one.
    """
    self._file = self._events = None
    self._synced = time.monotonic()
    if jax.process_index() != 0:
      return
    from dinojax.reporting import events  # here, since it costs a second

    self._workdir = pathlib.Path(workdir)
    with self._failing_in_one_line():
      path = self._workdir / "metrics.jsonl"
      if start_step is not None:
        self._drop_after(start_step, path)
      self._file = path.open("a", buffering=1)
      folder = self._workdir / "tensorboard"
      self._events = events.Events(folder, start_step=start_step)

  def write(
    self,
    step: int,
    scalars: dict[str, float],
    *,
    about: Mapping[str, str | float] = types.MappingProxyType({}),
  ) -> None:
    """Appends one line; floats keep all their digits.

    Args:
      step: completed updates.
      scalars: numbers by name.
      about: what else the line says, and TensorBoard does not.

    Raises:
      UserError: it cannot be written.
    """
    if self._file is None:
      return
    with self._failing_in_one_line():
      self._file.write(json.dumps({"step": step, **scalars, **about}) + "\n")
      self._events.write(step, scalars)
    if time.monotonic() - self._synced > SECONDS_BETWEEN_SYNCS:
      self.sync()

  def sync(self) -> None:
    """Returns when all is on disk, or in the bucket; UserError if it fails."""
    if self._file is None:
      return
    with self._failing_in_one_line():
      os.fsync(self._file.fileno())
      self._events.sync()
    self._synced = time.monotonic()

  def close(self) -> None:
    """Flushes and closes both files."""
    if self._file is not None:
      with self._failing_in_one_line():
        self._file.close()
        self._events.close()

  def _drop_after(self, step: int, path: pathlib.Path) -> None:
    kept = []
    if path.exists():
      for line in path.read_text().splitlines():
        # A line that a kill has cut off is no JSON, or none of ours.
        with contextlib.suppress(ValueError, TypeError, KeyError):
          if json.loads(line)["step"] <= step:
            kept.append(line + "\n")
    new = path.with_suffix(".new")
    new.write_text("".join(kept))
    os.replace(new, path)

  @contextlib.contextmanager
  def _failing_in_one_line(self):
    try:
      yield
    except OSError as error:
      raise errors.of_disk(error)(
        f"config.workdir={self._workdir}: cannot write metrics ({error.strerror});"
        " make room there, or permit writing, and restart"
      ) from error


class Alarm:
  """Warns when the loss stays where nothing is learnt, or falls to a collapse."""

  def __init__(self, *, window: int, nothing_learnt: float):
    """window: steps to average over. nothing_learnt: `losses.nothing_learnt`."""
    self._window, self._nothing_learnt = window, nothing_learnt
    self._losses = []

  def update(self, step: int, loss: float) -> str | None:
    """Adds a step's DINO + iBOT loss; returns a warning, at the end of a window."""
    self._losses.append(loss)
    if len(self._losses) < self._window:
      return None
    mean, self._losses = sum(self._losses) / self._window, []
    seen = f"step {step}: mean DINO + iBOT loss of {self._window} steps is {mean:.3f}"
    if abs(mean - self._nothing_learnt) < 0.01 * self._nothing_learnt:
      return (
        f"ALARM {seen}, the value of a student that has learnt nothing"
        f" ({self._nothing_learnt:.3f}); check learning rate, teacher_temp and"
        " teacher_entropy"
      )
    if mean < 0.02 * self._nothing_learnt:
      return (
        f"ALARM {seen}, close to 0, a collapse: all images may share one prototype;"
        " check teacher_entropy, loss_koleo and the targets"
      )
    return None


class Log:
  """Log of a run: checks each step's scalars, writes them, warns, moves the bar."""

  def __init__(
    self,
    workdir: str,
    *,
    start_step: int,
    total_steps: int,
    log_every: int,
    batch_size: int,
    alarm_window: int,
    nothing_learnt: float,
    workers: int,
  ):
    """Opens the files and the bar.

    Args:
      workdir: of the run.
      start_step: completed updates.
      total_steps: as log_every, batch_size, alarm_window, workers: of the config.
      log_every: steps between two lines.
      batch_size: images of a step.
      alarm_window: steps whose mean loss an alarm judges.
      nothing_learnt: of `losses.nothing_learnt`.
      workers: input processes.
    """
    self._writer = Writer(workdir, start_step=start_step)
    self._progress = console.Progress(total=total_steps, start=start_step)
    self._alarm = Alarm(window=alarm_window, nothing_learnt=nothing_learnt)
    self._timer = throughput.Timer()
    self._judge = throughput.Judge(workers=workers)
    self._every, self._batch_size = log_every, batch_size
    self._pending, self._lap_steps = [], 0
    self._warm = False  # the first step, and with it the compiler, is done

  def waiting(self):
    """Context in which time counts as waiting for data."""
    return self._timer.waiting()

  def step(self, step: int, scalars: dict[str, jax.Array], input_rate: float) -> None:
    """Takes the scalars of a completed step; they stay on the device until `flush`.

    input_rate: images a second that the input can make, see `prefetch.Batches.rate`.
    """
    self._pending.append((step, scalars))
    self._timer.dispatched(scalars)
    self._input_rate = input_rate
    if not self._warm:  # compilation says nothing about the next steps
      jax.block_until_ready(scalars)
      self._timer.restart()
      self._warm, self._lap_steps = True, -1
    # At most one step ahead of the device: each one holds a batch in its memory.
    jax.block_until_ready([scalars for _, scalars in self._pending[-2:-1]])
    self._progress.update(1)
    if step % self._every == 0:
      self.flush()

  def flush(self) -> None:
    """Fetches, checks and writes what is pending; waits for the device.

    Raises:
      UserError: a scalar is not finite; names the first one and its step.
    """
    pending, self._pending = jax.device_get(self._pending), []
    for step, scalars in pending:
      scalars = {name: float(value) for name, value in scalars.items()}
      self._lap_steps += 1
      if name := first_non_finite(scalars):
        raise errors.UserError(
          f"step {step}: {name} is {scalars[name]}; stopped before the next save; try a"
          " lower learning rate, or float32, in a new config.workdir"
        )
      if warning := self._alarm.update(
        step, scalars["loss_dino"] + scalars["loss_ibot"]
      ):
        console.say(warning)
      if step % self._every == 0:
        rates = self._timer.lap(self._lap_steps * self._batch_size)
        rates["input_images_per_second"] = self._input_rate
        if self._lap_steps and (verdict := self._judge.update(rates)):
          console.say(verdict)
        self._lap_steps = 0
        finite = {name: x for name, x in rates.items() if math.isfinite(x)}
        self._writer.write(step, {**scalars, **finite})
        self._progress.show({**scalars, **rates})

  def sync(self) -> None:
    """As `flush`, and returns when all is on disk: before a checkpoint."""
    self.flush()
    self._writer.sync()

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Writes results of an evaluation, and leaves its time out of the next rates."""
    self._writer.write(step, scalars)
    self._timer.restart()
    self._lap_steps = 0

  def close(self) -> None:
    """Closes files and bar."""
    self._progress.close()
    self._writer.close()
