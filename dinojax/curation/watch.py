"""Watches a pipeline on this machine: the first failure ends all of it at once.

Beam's local runner lets every process finish its share before it tells of an error, and
waits for ever for one that was killed. So a task that fails says so here by a socket
(the disk may be full), and all processes are ended.
"""

import contextlib
import os
import socket
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from dinojax import errors

POLL = 0.5  # seconds between looks
LONGEST = 60_000  # bytes of a failure's text


class Failures:
  """Receives what tasks of any process of this machine say of their failure."""

  def __init__(self):
    """Opens a socket without a file; it closes with this process."""
    self.address = f"\0dinojax-{os.getpid()}-{uuid.uuid4().hex}"
    self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    self._socket.bind(self.address)
    self._socket.settimeout(POLL)

  def wait(self) -> Exception | None:
    """Returns the next failure, or None when POLL seconds have passed without one."""
    try:
      kind, _, text = self._socket.recv(LONGEST + 1).decode().partition(" ")
    except TimeoutError:
      return None
    return errors.UserError(text) if kind == "user" else RuntimeError(text)

  def close(self) -> None:
    """Frees the socket."""
    self._socket.close()


def telling(address: str | None, function: Callable[[Any], Any], task: Any) -> Any:
  """Returns what a function makes of a task; tells of its failure, and raises it."""
  try:
    return function(task)
  except Exception as error:
    if address is not None:
      user = isinstance(error, errors.UserError)
      text = f"user {error}" if user else f"other {traceback.format_exc()[-20_000:]}"
      with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out,
      ):
        out.sendto(text.encode()[:LONGEST], address)
    raise


def run(start: Callable[[], Any], failures: Failures, show: Callable[[], None]) -> None:
  """Runs a pipeline to its end, or to its first failure.

  Args:
    start: runs it, and returns at its end.
    failures: told by its tasks.
    show: called now and then.

  Raises:
    UserError: that of a task, or a process was ended from outside.
  """
  ended, died = [], []

  def wait_for_end():
    try:
      start()
      ended.append(None)
    except BaseException as error:
      ended.append(error)

  def note(args):
    if "Worker subprocess exited" in str(args.exc_value):
      died.append(str(args.exc_value))

  with _no_orphans(), _told_to(note):
    threading.Thread(target=wait_for_end, daemon=True).start()
    while not ended:
      failure = failures.wait()
      show()
      if failure:
        raise failure
      if died:
        raise errors.UserError(
          f"a worker process was ended from outside ({died[0].rpartition(' ')[2]});"
          " memory may have run out, of which fewer --direct_num_workers take less; the"
          " same command goes on"
        )
    if ended[0] is not None:
      raise failures.wait() or ended[0]


@contextlib.contextmanager
def _told_to(note: Callable) -> Iterator[None]:
  """Hands what ends a thread to `note`, which Beam's threads would print."""
  before, threading.excepthook = threading.excepthook, note
  try:
    yield
  except BaseException:
    # The threads of a pipeline that is cut off end later, with complaints.
    threading.excepthook = _ignore
    raise
  threading.excepthook = before


def _ignore(_) -> None:
  pass


@contextlib.contextmanager
def _no_orphans() -> Iterator[None]:
  """Ends the processes that have been started, if anything is raised meanwhile."""
  before = set(psutil.Process().children(recursive=True))
  try:
    yield
  except BaseException:
    for process in set(psutil.Process().children(recursive=True)) - before:
      with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    raise
