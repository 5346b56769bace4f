"""Ends a run that gets nowhere, with the stacks of all threads, to be started again.

A collective that waits for ever, a file system that does not answer, a worker that is
stuck: none of these raises anything.
"""

import faulthandler
import math
import signal
import sys
import threading
import time

from dinojax import errors
from dinojax.runtime import exits

FIRST_STEP = 30 * 60  # seconds that the first step may take besides, for the compiler
LAST_RESORT = 30  # seconds until the kernel ends what has not ended itself


class Watchdog:
  """Wants to hear of progress within so many minutes, from now on.

  A thread watches: the main one waits for devices and files, and lets others run
  meanwhile. Should one hold on to Python's lock for good, that thread cannot run; then
  an alarm of the kernel's shows the stacks and ends the process, by signal 14. The
  other processes of the run end with this one.
  """

  def __init__(self, minutes: float):
    """Starts to watch; 0 minutes: never."""
    self._seconds = 60 * minutes or math.inf
    self._allowance = FIRST_STEP
    self.progress()
    if math.isfinite(self._seconds):
      faulthandler.register(signal.SIGALRM, file=sys.stderr, chain=True)
      threading.Thread(target=self._watch, daemon=True).start()

  def progress(self) -> None:
    """Takes note that something moved on: a batch, a save."""
    self._last = time.monotonic()
    self._arm()

  def step_done(self) -> None:
    """Takes note of a step; after the first one there is nothing left to compile."""
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
    faulthandler.dump_traceback(file=sys.stderr)
    exits.end(
      errors.TRY_AGAIN,
      f"no progress for {(self._seconds + self._allowance) / 60:g} minutes"
      " (config.hang_minutes), in the threads above; the same command goes on from the"
      " newest checkpoint",
    )
