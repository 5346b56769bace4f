"""Errors of Orbax and TensorStore, a line each instead of their tracebacks."""

import logging
import sys
import traceback

# What a full disk, a lost mount or a broken file raises; TensorStore's are ValueErrors.
IO_ERRORS = (OSError, ValueError, RuntimeError)


def explain(error: BaseException) -> str:
  """The cause of an Orbax error, in one line; TensorStore has it last."""
  while error.__cause__ is not None:
    error = error.__cause__
  line = (str(error).splitlines() or [type(error).__name__])[0]
  return line if len(line) <= 200 else f"...{line[-200:]}"


def mute_orbax():
  """Keeps Orbax from printing the tracebacks of failures that are one line here."""
  logging.getLogger("absl").addFilter(_not_from_orbax)
  logging.getLogger("asyncio").addFilter(_not_from_orbax)
  sys.unraisablehook = _print_unraisable  # left-overs of a failed read or write


def _not_from_orbax(entry: logging.LogRecord) -> bool:
  return "/orbax/" not in entry.pathname and "never retrieved" not in entry.getMessage()


def _print_unraisable(entry):
  frames = traceback.extract_tb(entry.exc_traceback)
  from_orbax = any("/orbax/" in frame.filename for frame in frames)
  if not from_orbax and str(entry.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(entry)
