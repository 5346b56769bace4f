"""How a command ends, and the other processes of its run with it.

Every error of one process ends all of them with the same status (see errors.py), and
each prints why. Free of JAX, so that a wrong flag is reported at once.
"""

import os
import sys
import threading
import time
import traceback
from typing import NoReturn

from dinojax import errors
from dinojax.runtime import peers, signals

SECONDS_OF_DOUBT = 2  # until a lost peer, which may have caused an error, is known

_peers: peers.Peers | None = None  # of this process, as JAX's own state of it


def join(others: peers.Peers) -> None:
  """Connects this process's end to that of the others of its run."""
  global _peers
  _peers = others


def leave() -> None:
  """Announces to the others that this process has ended its part of the command."""
  if _peers:
    _peers.leave()


def end(status: int, cause: str) -> NoReturn:
  """Ends this process at once, from any thread, and all others with it.

  Args:
    status: of `errors`.
    cause: printed by this process and by the others.
  """
  if _peers:
    _peers.end(status, cause)
  signals.write_line(f"dinojax: {errors.printable(cause)}")
  os._exit(status)


def fail(cause: str, *, status: int = 1, error: Exception | None = None) -> NoReturn:
  """Ends the command, and all other processes with this one.

  Args:
    cause: printed by this process and by the others.
    status: of `errors`, or 128 + a signal's number.
    error: a bug, printed with its traceback.
  """
  if _peers and status < 128:
    # Any error may come of a lost peer, and `Peers` then ends the process.
    time.sleep(SECONDS_OF_DOUBT)
  if error:
    traceback.print_exception(error)
  if _peers:
    _peers.end(status, cause)
  if not error:
    print(f"dinojax: {errors.printable(cause)}", file=sys.stderr)
  exit(status)


def exit(status: int) -> NoReturn:
  """Exits, after some seconds also if what is open does not close.

  Threads may wait without end, for example for a disk that failed.
  """
  threading.Thread(target=_insist, args=[status], daemon=True).start()
  sys.exit(status)


def _insist(status):
  time.sleep(signals.SECONDS_TO_END)
  leave()
  os._exit(status)
