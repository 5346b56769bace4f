"""Failures of a pipeline on this machine: the first one ends all of its processes.

Beam's local runner lets every process finish its share before it reports an error, and
waits for ever for a process that was killed. So a task that fails reports it here, by a
socket (the disk may be full), and all processes are killed.
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

POLL = 0.5  # seconds between two looks
MAX_BYTES = 60_000  # of a failure's text


class Receiver:
  """Receives the failures that tasks of any process of this machine report."""

  def __init__(self):
    """Opens a socket without a file; it closes with this process."""
    self.address = f"\0dinojax-{os.getpid()}-{uuid.uuid4().hex}"
    self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    self._socket.bind(self.address)
    self._socket.settimeout(POLL)

  def next_failure(self) -> Exception | None:
    """Returns the next failure, or None when POLL seconds have passed without one."""
    try:
      kind, _, text = (
        self._socket.recv(MAX_BYTES + 1).decode(errors="replace").partition(" ")
      )
    except TimeoutError:
      return None
    return errors.UserError(text) if kind == "user" else RuntimeError(text)

  def close(self) -> None:
    """Frees the socket."""
    self._socket.close()


def reporting(address: str | None, function: Callable[[Any], Any], task: Any) -> Any:
  """Returns what a function makes of a task; reports its failure, and raises it."""
  try:
    return function(task)
  except Exception as error:
    if address is not None:
      user = isinstance(error, errors.UserError)
      text = f"user {error}" if user else f"other {traceback.format_exc()[-20_000:]}"
      content = text.encode(errors="backslashreplace")[:MAX_BYTES]
      with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out,
      ):
        out.sendto(content, address)
    raise


def run_until_failure(
  run: Callable[[], Any], receiver: Receiver, show_progress: Callable[[], None]
) -> None:
  """Runs a pipeline to its end, or to its first failure.

  Args:
    run: returns at the pipeline's end.
    receiver: of its tasks' failures.
    show_progress: called every POLL seconds.

  Raises:
    UserError: that of a task, or a process was killed.
  """
  ended, killed = [], []

  def run_and_note_end():
    try:
      run()
      ended.append(None)
    except BaseException as error:
      ended.append(error)

  def note_killed_worker(args):
    if "Worker subprocess exited" in str(args.exc_value):
      killed.append(str(args.exc_value))

  with _children_killed_on_error(), _thread_errors_to(note_killed_worker):
    threading.Thread(target=run_and_note_end, daemon=True).start()
    while not ended:
      failure = receiver.next_failure()
      show_progress()
      if failure:
        raise failure
      if killed:
        raise errors.UserError(
          f"a worker process was killed ({killed[0].rpartition(' ')[2]}), perhaps since"
          " memory ran out; restart the same command to resume, with a lower"
          " --direct_num_workers to use less memory"
        )
    if ended[0] is not None:
      raise receiver.next_failure() or ended[0]


@contextlib.contextmanager
def _thread_errors_to(handle: Callable) -> Iterator[None]:
  """Passes exceptions that end a thread to `handle`; Beam's threads print them."""
  before, threading.excepthook = threading.excepthook, handle
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
def _children_killed_on_error() -> Iterator[None]:
  """Kills the processes that were started meanwhile, if anything is raised."""
  before = set(psutil.Process().children(recursive=True))
  try:
    yield
  except BaseException:
    for process in set(psutil.Process().children(recursive=True)) - before:
      with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    raise
