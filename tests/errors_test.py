"""Exit statuses of unforeseen errors, and text that is safe to print."""

import errno

import jax
import pytest

from dinojax import errors


@pytest.mark.parametrize(
  ("error", "status"),
  [
    (TypeError("a bug"), 1),
    (OSError(errno.ENOENT, "No such file or directory"), 1),
    (OSError(errno.ESTALE, "Stale file handle"), 75),
    (OSError(errno.EIO, "Input/output error"), 75),
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 1),
    (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Executable expected"), 1),
    (jax.errors.JaxRuntimeError("UNAVAILABLE: connection reset by peer"), 75),
    (jax.errors.JaxRuntimeError("INTERNAL: uncorrectable ECC error"), 75),
  ],
)
def test_what_may_not_come_again_is_worth_a_restart(error, status):
  assert errors.unforeseen_status(error) == status


def test_what_is_no_utf8_is_known():
  assert errors.is_utf8("Früchte/日本") and not errors.is_utf8("caf\udce9")


def test_names_of_files_cannot_command_a_terminal():
  name = "a\x1b[2J\r\n\x07\x9b\u202egpj.exe\udcff\x7f"
  assert errors.printable(name) == (r"a\x1b[2J\r\n\x07\x9b\u202egpj.exe\xff\x7f")
  assert errors.printable("Früchte/日本 🍐.jpg") == "Früchte/日本 🍐.jpg"
