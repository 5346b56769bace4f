"""Ctrl-C and SIGTERM: status 130 and 143, from a command's first moment to its last.

`python -m dinojax.VERB` calls `end_at_once` before its imports, which take seconds, and
`end_in_order` when its work starts. Training saves first: see interrupts.py.
"""

import os
import signal
import sys
import threading
import time

SECONDS_TO_END = 10  # from a signal, or from an error, for a command to clean up
SIGNALS = (signal.SIGINT, signal.SIGTERM)
NUDGE = signal.SIGURG  # interrupts a system call, and nothing else

_received: int | None = None  # the first signal
_dropped = False  # what it raised, by Python


class Interrupted(KeyboardInterrupt):
  """A signal has ended a command that has nothing to save."""


def end_at_once() -> None:
  """From now on the first signal ends this process: nothing has been started yet."""
  for number in SIGNALS:
    signal.signal(number, _end)


def end_in_order() -> None:
  """From now on the first signal raises `Interrupted`, and the second ends the process.

  So that what was started is closed. After `SECONDS_TO_END` the process ends all the
  same: its main thread may be in a compiler, or wait for a disk.
  """
  read, write = os.pipe()
  os.set_blocking(write, False)
  signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  threading.Thread(target=_insist, args=[read], daemon=True).start()
  sys.unraisablehook = _raise_again
  signal.signal(NUDGE, lambda *_: None)
  for number in SIGNALS:
    signal.signal(number, _raise)


def release() -> None:
  """Leaves the two signals to other handlers, which the caller installs."""
  signal.set_wakeup_fd(-1)


def status() -> int | None:
  """128 + the number of the signal that was received, as shells have it; or None."""
  return None if _received is None else 128 + _received


def interrupt(number: int) -> None:
  """Raises `Interrupted` in a handler, again if Python drops it."""
  global _received
  _received = number
  raise Interrupted


def was_dropped() -> bool:
  """Whether a signal only repeats the first, of which Python dropped the exception."""
  global _dropped
  dropped, _dropped = _dropped, False
  return dropped


def write_line(line: str) -> None:
  """Prints one line on stderr; safe in a signal handler."""
  os.write(sys.stderr.fileno(), f"\n{line}\n".encode())


def _end(number, _):
  write_line(f"dinojax: ended by {signal.Signals(number).name}")
  os._exit(128 + number)


def _raise(number, frame):
  if _received is not None and not was_dropped():
    _end(number, frame)
  interrupt(number)


def _raise_again(dropped):
  """Python has dropped an exception, since a callback of its own raised it."""
  global _dropped
  if dropped.exc_type is not Interrupted:
    sys.__unraisablehook__(dropped)
    return
  _dropped = True
  threading.Thread(target=_repeat, daemon=True).start()


def _repeat():
  main = threading.main_thread().ident
  time.sleep(0.01)
  signal.pthread_kill(main, _received)
  while _dropped:  # it came right before a system call, which it did not interrupt
    time.sleep(0.01)
    signal.pthread_kill(main, NUDGE)


def _insist(read):
  while (number := os.read(read, 1)[0]) not in SIGNALS:
    pass
  deadline = time.monotonic() + SECONDS_TO_END
  while (left := deadline - time.monotonic()) > 0:
    time.sleep(min(left, 0.1))
    if _received is None:
      # It came right before a system call, and Python has not looked at it since.
      signal.pthread_kill(threading.main_thread().ident, NUDGE)
  _end(number, None)
