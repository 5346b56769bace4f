"""Ctrl-C and SIGTERM in training: all processes save after the current step and end."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from dinojax.runtime import signals


class Interrupts:
  """Handlers of both signals; a second signal ends the process at once.

  With several processes, JAX's own service passes SIGTERM to any of them on to all, and
  has them agree on the step to end at.
  """

  def __init__(self):
    """Installs the handlers."""
    self._number = None
    self._waiting = False
    self._alone = jax.process_count() == 1
    signals.release()
    signal.signal(signal.SIGINT, self._catch)
    if self._alone:
      signal.signal(signal.SIGTERM, self._catch)

  def _catch(self, number, _):
    if self._number is not None and not signals.was_dropped():
      # An exception would be lost where Python happens to be in a callback.
      signals.write_line("ended; steps since the last checkpoint are lost")
      os._exit(128 + number)
    if self._number is None:
      self._number = number
      signals.write_line("saving after this step; once more ends at once, unsaved")
      if not self._alone:
        os.kill(os.getpid(), signal.SIGTERM)
    if self._waiting:
      signals.interrupt(number)

  def next(self, batches: Iterator) -> Any | None:
    """The next batch, or None if a signal comes first: data may never come.

    Of several processes, each waits for its data: they end after a step, all together.
    """
    try:
      self._waiting = self._alone
      return None if self._number is not None and self._alone else next(batches)
    except signals.Interrupted:
      return None
    finally:
      self._waiting = False

  def ends(self, step: int) -> bool:
    """Whether the run is to end after `step`; every process asks after every step."""
    if self._alone:
      return self._number is not None
    return multihost_utils.reached_preemption_sync_point(step)

  def exit_code(self) -> int:
    """128 + the number of the signal, as shells have it."""
    return 128 + (self._number or signal.SIGTERM)
