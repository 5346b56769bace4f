"""Failures of a pipeline on this machine: the first one ends all of its processes.

Beam's local runner lets every process finish its share before it reports an error, and
waits for ever for a process that was killed, or for a read that never returns. So a
task that fails, or has waited too long, reports it here, by a socket (the disk may be
full), and all processes are killed.
"""

import contextlib
import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil

from dinojax import errors
from dinojax.runtime import exits

POLL = 0.5  # seconds between two looks
MAX_BYTES = 60_000  # of a failure's text
# By the first word of a report. Of other errors the text is a traceback.
KINDS = {
  "user": errors.UserError,
  "temporary": errors.TemporaryError,
  "other": RuntimeError,
}

_task = threading.local()  # address: of the receiver, while a thread works on a task


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
    return KINDS[kind](text)

  def close(self) -> None:
    """Frees the socket."""
    self._socket.close()


def reporting(address: str | None, function: Callable[[Any], Any], task: Any) -> Any:
  """Returns what a function makes of a task; reports its failure, and raises it."""
  _task.address = address
  try:
    return function(task)
  except Exception as error:
    if address is not None:
      _report(address, _as_text(error))
    raise
  finally:
    _task.address = None


def _as_text(error: Exception) -> str:
  """A failure as `Receiver` reads it, to be called where it is handled."""
  if isinstance(error, errors.UserError):
    again = error.status == errors.TRY_AGAIN
    return f"{'temporary' if again else 'user'} {error}"
  if errors.unforeseen_status(error) == errors.TRY_AGAIN:
    return f"temporary {type(error).__name__}: {error}; the same command resumes"
  return f"other {traceback.format_exc()[-20_000:]}"


def _report(address: str, text: str) -> None:
  with (
    contextlib.suppress(OSError),
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out,
  ):
    out.sendto(text.encode(errors="backslashreplace")[:MAX_BYTES], address)


def watched(items: Iterable, *, minutes: float, where: str) -> Iterator:
  """Yields items that are read; ends the command if one does not come for `minutes`.

  A file system that does not answer raises no error, and nothing can stop a thread that
  waits for it.

  Args:
    items: whose `next` may wait for ever.
    minutes: for one item; 0: no limit.
    where: what is read, the beginning of the message.
  """
  if not minutes:
    yield from items
    return
  address, closed = getattr(_task, "address", None), threading.Event()
  begun = [time.monotonic()]  # of the wait for an item; None between two

  def watch():
    seconds = 60 * minutes
    while not closed.wait(min(seconds / 4, 1)):
      since = begun[0]
      if since is None or time.monotonic() - since < seconds:
        continue
      cause = (
        f"{where}: no image has come for {minutes:g} minutes (--hang_minutes); when"
        " the data are back, the same command resumes"
      )
      if address is None:  # no task's: of the command's own process, or elsewhere
        exits.end(errors.TRY_AGAIN, cause)
      _report(address, f"temporary {cause}")
      return

  threading.Thread(target=watch, daemon=True).start()
  try:
    for item in items:
      begun[0] = None
      yield item
      begun[0] = time.monotonic()
  finally:
    closed.set()


def run_until_failure(
  run: Callable[[], Any], receiver: Receiver, show_progress: Callable[[], None]
) -> None:
  """Runs a pipeline to its end, or to its first failure.

  Args:
    run: returns at the pipeline's end.
    receiver: of its tasks' failures.
    show_progress: called every POLL seconds.

  Raises:
    UserError: that of a task, or a process was killed (TemporaryError).
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
        raise errors.TemporaryError(
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
