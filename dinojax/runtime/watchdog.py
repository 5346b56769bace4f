"""Watchdog of a run: without progress it prints all stacks and ends with status 75.

A collective that never completes, a file system that does not answer, a worker that is
stuck: none of these raises an error.
"""

import faulthandler
import math
import signal
import sys
import threading
import time

from dinojax import errors
from dinojax.runtime import exits

FIRST_STEP = 30 * 60  # more seconds for the first step, which compiles
LAST_RESORT = 30  # seconds until the kernel ends a process that cannot end itself


class Watchdog:
  """Ends the process, and its run, when no progress is reported for some minutes.

  A thread watches, which can run while the main one waits for devices and files. If
  native code never releases Python's lock, it cannot; then an alarm of the kernel
  prints the stacks and ends the process by signal 14.
  """

  def __init__(self, minutes: float, *, setting: str = "config.hang_minutes"):
    """Starts to watch.

    Args:
      minutes: without progress; 0: no limit.
      setting: where the user sets them.
    """
    self._setting = setting
    self._seconds = 60 * minutes or math.inf
    self._allowance = FIRST_STEP
    self.progress()
    if math.isfinite(self._seconds):
      faulthandler.register(signal.SIGALRM, file=sys.__stderr__, chain=True)
      threading.Thread(target=self._watch, daemon=True).start()

  def progress(self) -> None:
    """Reports progress, such as a batch or a save."""
    self._last = time.monotonic()
    self._arm()

  def step_done(self) -> None:
    """Reports a step; after the first one there is nothing left to compile."""
    self._allowance = 0
    self.progress()

  def close(self) -> None:
    """Stops to watch."""
    self._seconds = math.inf
    self._arm()

  def _arm(self) -> None:
    seconds = self._seconds + self._allowance + LAST_RESORT
    signal.setitimer(signal.ITIMER_REAL, seconds if math.isfinite(seconds) else 0)

  def _left(self) -> float:
    return self._last + self._seconds + self._allowance - time.monotonic()

  def _watch(self) -> None:
    while (left := self._left()) > 0:
      if math.isinf(left):
        return
      time.sleep(min(left, 1))
    faulthandler.dump_traceback(file=sys.__stderr__)
    exits.end(
      errors.TRY_AGAIN,
      f"no progress for {(self._seconds + self._allowance) / 60:g} minutes"
      f" ({self._setting}), in the threads above; the same command resumes from what is"
      " saved",
    )
