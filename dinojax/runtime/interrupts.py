"""Ctrl-C and SIGTERM in training: all processes save after the current step and end."""

import os
import signal

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
    self._alone = jax.process_count() == 1
    signals.release()
    signal.signal(signal.SIGINT, self._catch)
    if self._alone:
      signal.signal(signal.SIGTERM, self._catch)

  def _catch(self, number, _):
    if self._number is not None:
      # An exception would be lost where Python happens to be in a callback.
      signals.write_line("ended; steps since the last checkpoint are lost")
      os._exit(128 + number)
    self._number = number
    signals.write_line("saving after this step; once more ends at once, unsaved")
    if not self._alone:
      os.kill(os.getpid(), signal.SIGTERM)

  def ends(self, step: int) -> bool:
    """Whether the run is to end after `step`; every process asks after every step."""
    if self._alone:
      return self._number is not None
    return multihost_utils.reached_preemption_sync_point(step)

  def exit_code(self) -> int:
    """128 + the number of the signal, as shells have it."""
    return 128 + (self._number or signal.SIGTERM)
