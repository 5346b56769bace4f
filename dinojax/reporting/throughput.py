"""How fast a run is, whether the input keeps up, and what to do if it does not."""

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import time

import jax

from dinojax.reporting import alarm

ENOUGH = 1.1  # input over step: batches are not all equally quick to make


class Timer:
  """Throughput, and the share of the time in which the devices waited for data."""

  def __init__(self):
    """Starts."""
    self._watcher = concurrent.futures.ThreadPoolExecutor(1)
    self._newest = None  # resolves to the time at which the newest step ended
    self.restart()

  def restart(self) -> None:
    """Forgets the time so far."""
    self._start, self._waited = time.perf_counter(), 0.0

  def dispatched(self, scalars: dict[str, jax.Array]) -> None:
    """Takes what the newest step returned, perhaps still being computed."""
    self._newest = self._watcher.submit(_time_ready, scalars)

  @contextlib.contextmanager
  def waiting(self):
    """Counts the time within as waiting, from when the devices have nothing to do."""
    start = time.perf_counter()
    yield
    now = time.perf_counter()
    if self._newest is not None:
      start = max(start, self._newest.result()) if self._newest.done() else now
    self._waited += now - start

  def lap(self, images: int) -> dict[str, float]:
    """Rates since the last lap, in which so many images were trained on."""
    seconds = time.perf_counter() - self._start
    rates = {
      "images_per_second": images / seconds,
      "data_wait_share": self._waited / seconds,
      "step_images_per_second": images / (seconds - self._waited),
    }
    self.restart()
    return rates


def _time_ready(scalars):
  jax.block_until_ready(scalars)
  return time.perf_counter()


@dataclasses.dataclass(frozen=True)
class Settings:
  """Where the user sets what makes the input fast, for messages.

  workers: the number of processes. crops: the number of crops of an image; "" where it
  is always one.
  """

  workers: str = "config.workers"
  crops: str = "config.augment.num_local"


class Judge:
  """Says once which of input and step is slower, and again if waiting sets in."""

  def __init__(self, *, workers: int, settings: Settings | None = None):
    """workers: input processes of this host; 0 reads in a thread."""
    self._workers, self._settings = workers, settings or Settings()
    self._starving = None  # as of the last verdict

  def update(self, rates: dict[str, float]) -> str | None:
    """Takes the rates of a lap, see `Timer.lap`; returns a verdict when it is due."""
    starving = rates["data_wait_share"] > alarm.MUCH_WAITING
    if self._starving or self._starving == starving:
      return None
    self._starving = starving
    return verdict(
      input_rate=rates["input_images_per_second"],
      step_rate=rates["step_images_per_second"],
      workers=self._workers,
      cores=len(os.sched_getaffinity(0)),
      shared=jax.default_backend() == "cpu",
      settings=self._settings,
    )


def verdict(
  *,
  input_rate: float,
  step_rate: float,
  workers: int,
  cores: int,
  shared: bool,
  settings: Settings,
) -> str:
  """One line that says which of the two is the bottleneck, with advice.

  Args:
    input_rate: images a second that the input workers of all hosts can make.
    step_rate: images a second that the step would take, if it never waited.
    workers: input processes of one host; 0 reads in a thread.
    cores: that this host's workers may run on.
    shared: the step runs on the same cores, as on a CPU.
    settings: where the user changes it.
  """
  rates = f"the input gives {input_rate:,.0f} images/s, the step takes {step_rate:,.0f}"
  if input_rate >= ENOUGH * step_rate:
    return f"{rates}: the input keeps up"
  wanted = math.ceil(max(workers, 1) * ENOUGH * step_rate / input_rate)
  share = max(1 - input_rate / step_rate, 0)
  line = f"{rates}: the step waits for images {share:.0%} of the time; "
  if shared:
    fewer = f", or fewer {settings.crops}," if settings.crops else ""
    return line + (
      f"both share this machine's cores: smaller images{fewer} leave more to the step"
    )
  if wanted <= cores:
    return line + f"set {settings.workers}={wanted}, this host has {cores} cores"
  more_workers = "" if workers >= cores else f": set {settings.workers}={cores}, and"
  fewer = ", or make fewer or cheaper crops (config.augment)" if settings.crops else ""
  return line + (
    f"it would take {wanted} workers, and this host has {cores} cores{more_workers}:"
    f" store smaller images{fewer}, or take more hosts"
  )
