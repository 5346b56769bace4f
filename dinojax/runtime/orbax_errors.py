"""Errors of Orbax and TensorStore, a line each instead of their tracebacks."""

import logging
import os
import sys
import traceback
from collections.abc import Callable

from dinojax.runtime import signals

# What a full disk, a lost mount or a broken file raises; TensorStore's are ValueErrors.
IO_ERRORS = (OSError, ValueError, RuntimeError)


def explain(error: BaseException) -> str:
  """The cause of an Orbax error, in one line; TensorStore has it last."""
  while error.__cause__ is not None:
    error = error.__cause__
  line = (str(error).splitlines() or [type(error).__name__])[0]
  line = line.partition(" [tensorstore_spec=")[0]  # all settings of the reader
  return line if len(line) <= 200 else f"...{line[-200:]}"


def is_one_of(error: BaseException, numbers: tuple[int, ...]) -> bool:
  """Whether an error has one of these errnos, which TensorStore states in words."""
  cause = explain(error)
  return any(os.strerror(number) in cause for number in numbers)


def mute_orbax():
  """Keeps Orbax from printing the tracebacks of failures that are one line here."""
  logging.getLogger("absl").addFilter(_not_from_orbax)
  logging.getLogger("asyncio").addFilter(_not_from_orbax)
  # Left-overs of a failed read or write. Others are for the hook that is there, which
  # raises an interrupt again.
  if not isinstance(sys.unraisablehook, _Hook):
    sys.unraisablehook = _Hook(sys.unraisablehook)


def _not_from_orbax(entry: logging.LogRecord) -> bool:
  return "/orbax/" not in entry.pathname and "never retrieved" not in entry.getMessage()


class _Hook:
  """Drops what Orbax cannot raise, and passes on what others cannot."""

  def __init__(self, before: Callable):
    self._before = before

  def __call__(self, entry):
    frames = traceback.extract_tb(entry.exc_traceback)
    from_orbax = any("/orbax/" in frame.filename for frame in frames)
    is_noise = from_orbax or str(entry.exc_value) == "Event loop is closed"
    if entry.exc_type is signals.Interrupted or not is_noise:
      self._before(entry)
