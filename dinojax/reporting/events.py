"""Events of a run, in WORKDIR/events.jsonl: starts, checkpoints, alarms, its end.

A line is {"time": seconds since 1970, "event": kind, ...}. Unlike metrics.jsonl the
file only grows: it also has what happened after the step from which a run resumed.
Kinds, and what else their lines hold:

  start        step, from which it trains; what runs, and on what (see introduction.py)
  checkpoint   step that is being saved
  alarm        step, text
  input        step, text: whether the input keeps up
  skipped      text: a corrupt record, or their number so far
  warning      text, of any library
  comparison   step, results: k-NN of the teacher, the untrained network, raw pixels
  interrupted  step, signal
  failed       step, text of the error
  done         step
"""

import contextlib
import json
import logging
import pathlib
import time

NAME = "events.jsonl"
MAX_WARNINGS = 100  # of a process: one that repeats would fill the disk
MAX_CHARACTERS = 2_000  # of a warning


class Events:
  """The file, to which process 0 alone appends."""

  def __init__(self, workdir: pathlib.Path):
    """Opens it; ends a line that a kill has cut off."""
    path = workdir / NAME
    cut_off = path.exists() and not path.read_bytes().endswith(b"\n")
    self._file = path.open("a", buffering=1, encoding="utf-8")
    if cut_off and path.stat().st_size:
      self._file.write("\n")
    self._handler = _Warnings(self)
    logging.getLogger().addHandler(self._handler)

  def write(self, event: str, **what) -> None:
    """Appends one line; OSError if it cannot."""
    line = json.dumps({"time": round(time.time(), 3), "event": event, **what})
    self._file.write(line + "\n")

  def close(self) -> None:
    """Closes the file; warnings are no longer events."""
    logging.getLogger().removeHandler(self._handler)
    self._file.close()


class _Warnings(logging.Handler):
  """Turns what is logged as a warning into events, of the kind in its `event`."""

  def __init__(self, events: Events):
    super().__init__(logging.WARNING)
    self._events, self._left = events, MAX_WARNINGS

  def emit(self, record: logging.LogRecord) -> None:
    """Writes one; a disk that is full is for the metrics to report."""
    if self._left <= 0:
      return
    self._left -= 1
    kind = getattr(record, "event", "warning")
    with contextlib.suppress(Exception):  # logging must not end what it reports on
      self._events.write(kind, text=record.getMessage()[:MAX_CHARACTERS])
