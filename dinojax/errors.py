"""Errors that end a command early, and the meaning of its exit status.

  0        done
  1        the same command would end so again: a UserError, or a bug with its
           traceback. Change something before you restart it.
  75       the same command resumes from what is saved: no progress for too long, other
           processes that are lost or did not come, a device or disk that failed. Worth
           some restarts, counted, since a cause that stays brings it back.
  128 + n  ended by signal n, and all is saved: a machine is taken back (143), or a
           Ctrl-C (130). Worth a restart each time.

A process that is killed, or aborted by what lies below Python, has another status;
treat it as 75.
"""

import errno
import sys

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
# What the file system of a network reports when its server does not answer.
OUT_OF_REACH = (errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO)
FAILED_DISK = (errno.EIO, *OUT_OF_REACH)
# How a device's report begins that it can never run a program.
UNFIT_PROGRAM = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


class UserError(Exception):
  """A bad config, path, image folder or workdir: names field, value and way out.

  Entry points print it as a single line.
  """

  status = 1


class TemporaryError(UserError):
  """An error that the same command may not meet again."""

  status = TRY_AGAIN


def unforeseen_status(error: Exception) -> int:
  """Status after an exception that is no UserError: 1 for a bug, 75 for a failure.

  A disk or device that fails may be well, or another one, at the next start.
  """
  jax = sys.modules.get("jax")  # not loaded for this alone
  if jax and isinstance(error, jax.errors.JaxRuntimeError):
    lasting = str(error).startswith(UNFIT_PROGRAM)
  else:
    lasting = getattr(error, "errno", None) not in FAILED_DISK
  return 1 if lasting else TRY_AGAIN


def of_disk(error: OSError) -> type[UserError]:
  """The kind of user error that an OSError is: temporary if a disk has failed."""
  return TemporaryError if error.errno in FAILED_DISK else UserError


def printable(text: str) -> str:
  r"""Escapes what a terminal would obey, or not show: names of files may hold anything.

  Control characters, line breaks, marks that reverse the direction of text, and bytes
  that are no UTF-8 are escaped, as \x1b.
  """
  return "".join(x if x.isprintable() else _escape(x) for x in text)


def is_utf8(text: str) -> bool:
  """Whether the name of a file is UTF-8, as libraries of C++ want it."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def _escape(character: str) -> str:
  code = ord(character)
  if 0xDC80 <= code <= 0xDCFF:  # what os.fsdecode makes of a byte that is no UTF-8
    return f"\\x{code - 0xDC00:02x}"
  return repr(character)[1:-1]
