"""Log of a run: metrics, alarms, events, the progress bar; it has its page refreshed.

Process 0 alone writes and prints.
"""

import contextlib
import math
import pathlib
import signal
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from dinojax import errors
from dinojax.reporting import alarm, console, events, metrics, throughput


def first_non_finite(scalars: dict[str, float]) -> str | None:
  """Name of the first scalar that is infinite or not a number."""
  return next((name for name, x in scalars.items() if not math.isfinite(x)), None)


class Page(Protocol):
  """The page of a run, such as `live_page.LivePage`."""

  def refresh(self) -> None:
    """Writes it, unless that would take too long."""

  def finish(self) -> None:
    """Writes it a last time."""


class Log:
  """Log of a run: checks each step's scalars, writes them, warns, moves the bar.

  A context: how it is left is the run's last event, and then its page is written.
  """

  def __init__(
    self,
    workdir: str,
    *,
    start_step: int,
    total_steps: int,
    log_every: int,
    batch_size: int,
    alarm_window: int,
    nothing_learnt: float | None,
    workers: int,
    settings: throughput.Settings | None = None,
    loggers: Sequence[str] = ("tensorboard",),
    config: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] = types.MappingProxyType({}),
    page: Page | None = None,
    name: str = "",
    bar: bool = True,
  ):
    """Opens the files and the bar.

    Args:
      workdir: of the run.
      start_step: completed updates.
      total_steps: as log_every, batch_size, alarm_window, workers: of the config.
      log_every: steps between two lines.
      batch_size: images of a step.
      alarm_window: steps whose mean loss an alarm judges.
      nothing_learnt: of `losses.nothing_learnt`; None: no alarm.
      workers: input processes.
      settings: where the user changes the speed of the input; None: in a config.
      loggers: config.loggers.
      config: of the run, for loggers that show it.
      about: what the event of this start says besides.
      page: of the run, refreshed with each checkpoint and at the end.
      name: of the network, where a run trains several.
      bar: whether to show the bar; one of several logs does.
    """
    self._writer = metrics.Writer(
      workdir, start_step=start_step, names=loggers, config=config
    )
    self._workdir, self._step = pathlib.Path(workdir), start_step
    self._ended = False
    first = jax.process_index() == 0
    self._page = page if first else None
    with metrics.failing_in_one_line(self._workdir):
      self._events = events.Events(self._workdir) if first else None
    self._event(
      "start",
      step=start_step,
      total_steps=total_steps,
      batch_size=batch_size,
      alarm_window=alarm_window,
      nothing_learnt=nothing_learnt,
      **about,
    )
    self._label = f"{name}: " if name else ""
    self._bar = bar
    self._progress = console.Progress(
      total=total_steps, start=start_step, label=self._label, shown=bar
    )
    self._alarm = nothing_learnt and alarm.Alarm(
      window=alarm_window, nothing_learnt=nothing_learnt
    )
    self._timer = throughput.Timer()
    self._judge = throughput.Judge(workers=workers, settings=settings)
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
    self._step = step
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
          f"{self._label}step {step}: {name} is {scalars[name]}; stopped before"
          " the next save; try a lower learning rate, or float32, in a new workdir"
        )
      if self._alarm and (
        warning := self._alarm.update(step, scalars["loss_dino"] + scalars["loss_ibot"])
      ):
        console.say(f"{self._label}{warning}")
        self._event("alarm", step=step, text=warning)
      if step % self._every == 0:
        rates = self._timer.lap(self._lap_steps * self._batch_size)
        rates["input_images_per_second"] = self._input_rate
        if not self._lap_steps:  # the first step, which the compiler had, says nothing
          rates = {}
        elif verdict := self._judge.update(rates):
          if self._bar:  # which concerns all networks alike
            console.say(verdict)
          self._event("input", step=step, text=verdict)
        self._lap_steps = 0
        finite = {name: x for name, x in rates.items() if math.isfinite(x)}
        self._writer.write(step, {**scalars, **finite}, about=_now())
        if rates:
          self._progress.show({**scalars, **rates})

  def sync(self) -> None:
    """As `flush`, and returns when all is on disk: before a checkpoint."""
    self.flush()
    self._writer.sync()

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Writes results of an evaluation, and leaves its time out of the next rates."""
    self._writer.write(step, scalars, about=_now())
    self._timer.restart()
    self._lap_steps = 0

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes images by name, and leaves their time out of the next rates."""
    self._writer.write_images(step, images)
    self._timer.restart()
    self._lap_steps = 0

  def saved(self, step: int) -> None:
    """Notes a checkpoint, and refreshes the run's page."""
    self._event("checkpoint", step=step)
    if self._page:
      self._page.refresh()

  def compared(self, results: Mapping[str, Mapping[str, float]]) -> None:
    """Notes the evaluation of several networks, by name: see `Evaluation.compare`."""
    self._event("comparison", step=self._step, results=results)

  def close(self, exit_code: int = 0) -> None:
    """Closes files and bar. exit_code: that the run ends with, for loggers."""
    self._progress.close()
    self._writer.close(exit_code)
    if self._events:
      self._events.close()
      self._events = None

  def __enter__(self) -> "Log":
    """Returns itself."""
    return self

  def __exit__(self, kind, error, trace) -> None:
    """Notes how the run has ended, writes the page, and closes all."""
    exit_code = 1  # where the last event cannot be written
    try:
      # A disk that is full has ended the run by then.
      with contextlib.suppress(errors.UserError) if error else contextlib.nullcontext():
        self._end(**_ending(error))
      exit_code = _exit_code(error)
    finally:
      self.close(exit_code)

  def interrupted(self, status: int) -> None:
    """Notes that a signal ends the run, as long as nothing else that closes can hang.

    status: 128 + the signal's number.
    """
    self._end(**_ending(SystemExit(status)))

  def _end(self, kind: str, **what) -> None:
    if self._ended:
      return
    self._ended = True
    self._event(kind, step=self._step, **what)
    if self._page:
      self._page.finish()

  def _event(self, kind: str, **what) -> None:
    if self._events:
      with metrics.failing_in_one_line(self._workdir):
        self._events.write(kind, **what)


def _now() -> dict[str, float]:
  return {"time": round(time.time(), 3)}


def _exit_code(error: BaseException | None) -> int:
  """The exit code of a run that ends with an exception, or with none; see `errors`."""
  if error is None:
    return 0
  if isinstance(error, KeyboardInterrupt):
    return 128 + signal.SIGINT
  if isinstance(error, SystemExit) and isinstance(error.code, int):
    return error.code
  return error.status if isinstance(error, errors.UserError) else 1


def _ending(error: BaseException | None) -> dict[str, str]:
  """The event of a run's end, by the exception that it ends with."""
  if error is None:
    return {"kind": "done"}
  if isinstance(error, KeyboardInterrupt):
    return {"kind": "interrupted", "signal": "SIGINT"}
  if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
    return {"kind": "interrupted", "signal": signal.Signals(error.code - 128).name}
  name = "" if isinstance(error, errors.UserError) else f"{type(error).__name__}: "
  return {"kind": "failed", "text": f"{name}{error}"}
