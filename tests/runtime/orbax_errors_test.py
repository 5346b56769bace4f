"""Errors of Orbax in one line, and exceptions that Python cannot raise."""

import errno
import sys
import types

import pytest

from dinojax import errors
from dinojax.runtime import orbax_errors, signals


@pytest.mark.parametrize(
  ("error", "expected"),
  [
    (OSError(errno.ESTALE, "Stale file handle"), True),
    (ValueError("UNKNOWN: Failed to read\n ... (Stale file handle)"), False),
    (ValueError("UNKNOWN: Failed to read [OS error 116: Stale file handle]"), True),
    (OSError(errno.EIO, "Input/output error"), False),
  ],
)
def test_the_cause_is_known_from_its_line(error, expected):
  assert orbax_errors.is_one_of(error, errors.OUT_OF_REACH) == expected


def test_a_cause_of_tensorstores_is_what_failed_and_not_its_settings():
  spec = "[tensorstore_spec='" + "{" * 300 + "']"
  error = ValueError(f"OUT_OF_RANGE: Error reading a: not valid for size 100 {spec}")
  assert orbax_errors.explain(error).endswith("reading a: not valid for size 100")


def test_an_interrupt_that_python_drops_still_reaches_the_handler_of_signals(
  monkeypatch,
):
  reached = []
  monkeypatch.setattr(sys, "unraisablehook", reached.append)
  for _ in range(2):  # as every reader and writer of checkpoints does
    orbax_errors.mute_orbax()
  for kind in (signals.Interrupted, RuntimeError):
    error = kind("Event loop is closed")
    sys.unraisablehook(
      types.SimpleNamespace(exc_type=kind, exc_value=error, exc_traceback=None)
    )
  assert [entry.exc_type for entry in reached] == [signals.Interrupted]
