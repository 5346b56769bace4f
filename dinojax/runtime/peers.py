"""Peers of a process in its run: which of them is lost, and why.

JAX's own service aborts a process, in C++, when others are gone, without a word about
which or what to do. So all stay connected to process 0, where they have met (see
rendezvous.py). A connection carries one line, the last: "bye", or why a process ends.
The kernel closes the connections of a killed process at once; a host that is gone is
noticed within `rendezvous.LOST_AFTER` seconds.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import threading
import time

from dinojax import errors
from dinojax.runtime import rendezvous, signals


class Peers:
  """The connections of a process: of process 0 to each other one, of those to it."""

  def __init__(self, number: int, count: int, connections: dict[int, socket.socket]):
    """Watches the connections, {process: socket}, from now on."""
    self._number, self._count = number, count
    self._connections = connections
    self._ending = threading.Lock()
    if number:
      # JAX aborts a process, in C++, that has lost process 0. As SIGABRT's handler,
      # sleep(SIGABRT) gives `_watch` six seconds to print why and end the process.
      libc = ctypes.CDLL(None)
      libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    threading.Thread(target=self._watch, daemon=True).start()

  def leave(self) -> None:
    """Announces that this process is done, so that no other takes it for lost."""
    self._send("bye")

  def end(self, status: int, cause: str) -> None:
    """Ends this process, and with it all others, with a status; never returns.

    Not by way of Python's end, where JAX would wait minutes for the others.

    Args:
      status: of `errors`.
      cause: printed by all of them.
    """
    self._end(status, cause, f"process {self._number} of {self._count} ended: {cause}")

  def _end(self, status: int, cause: str, message: str) -> None:
    self._ending.acquire()  # for good: a second thread waits here for the end
    signals.write_line(f"dinojax: {errors.printable(cause)}")
    self._send(f"end {status} {errors.printable(message)}")
    if self._number == 0:  # JAX's service ends with it, and aborts who still uses it
      self._await_others(seconds=3)
    os._exit(status)

  def _send(self, line: str) -> None:
    for connection in self._connections.values():
      with contextlib.suppress(OSError):  # gone by itself
        connection.sendall(f"{line}\n".encode())

  def _await_others(self, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for connection in self._connections.values():
      with contextlib.suppress(OSError):
        connection.settimeout(max(deadline - time.monotonic(), 0.01))
        while connection.recv(1024):
          pass

  def _watch(self) -> None:
    with selectors.DefaultSelector() as selector:
      for number, connection in self._connections.items():
        selector.register(connection, selectors.EVENT_READ, number)
      while selector.get_map():
        for key, _ in selector.select():
          selector.unregister(key.fileobj)
          self._end_with(key.data)

  def _end_with(self, number: int) -> None:
    """Reads the last line of a process, and ends this one unless it took leave."""
    why = "it was killed, ran out of memory, or its host was taken away"
    try:
      line = rendezvous.read_line(self._connections[number])
    except OSError:
      line, why = "", "its host does not answer"
    if line == "bye":
      return
    if line.startswith("end "):
      _, status, cause = line.split(maxsplit=2)
      self._end(int(status), cause, cause)
    lost = (
      f"process {number} of {self._count} is lost: {why}; the same command resumes"
      " from what is saved"
    )
    self._end(errors.TRY_AGAIN, lost, lost)


def call_in(address: str, number: int, count: int, *, seconds: float) -> Peers:
  """Returns when all processes have called process 0, which frees the port then.

  Args:
    address: HOST:PORT of process 0.
    number: of this process, from 0.
    count: of all processes.
    seconds: to wait for the others.

  Raises:
    UserError: the address or the numbers cannot be right.
    TemporaryError: others did not come in time; names them.
  """
  deadline = time.monotonic() + seconds
  if number == 0:
    return Peers(0, count, rendezvous.gather(address, count, deadline))
  return Peers(number, count, {0: rendezvous.reach(address, number, count, deadline)})
