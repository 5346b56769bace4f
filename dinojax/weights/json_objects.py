"""JSON objects beside weights, read from files that may hold anything."""

import json
import pathlib
import reprlib

from dinojax import errors

MOST_BYTES = 2**26  # of a file; the index of a thousand shards takes a hundredth


def parse(text: str, path: str | pathlib.Path) -> dict:
  """A JSON object; UserError that names `path` if the text is none."""
  try:
    parsed = json.loads(text)
  except RecursionError as error:
    raise errors.UserError(f"{path} cannot be read: nested too deep") from error
  except ValueError as error:
    raise errors.UserError(f"{path} cannot be read: {error}") from error
  if not isinstance(parsed, dict):
    raise errors.UserError(f"{path} cannot be read: it is no JSON object")
  return parsed


def read(path: pathlib.Path) -> dict:
  """The JSON object in a file; UserError if there is none."""
  try:
    size = path.stat().st_size
    if not path.is_file() or size > MOST_BYTES:
      raise errors.UserError(
        f"{path} cannot be read: it must be a file of at most {MOST_BYTES:,} bytes"
        f" (it has {size:,})"
      )
    return parse(path.read_text(), path)
  except OSError as error:
    raise errors.UserError(f"{path} cannot be read: {error.strerror}") from error
  except UnicodeDecodeError as error:
    raise errors.UserError(f"{path} cannot be read: {error}") from error


def whole_number(value, name: str, path: str | pathlib.Path) -> int | None:
  """A number of at least 1, given as such or as digits; None stays None.

  Args:
    value: of a JSON object or of a safetensors file's metadata.
    name: of the value, for the error.
    path: where it stands, for the error.

  Raises:
    UserError: it is something else.
  """
  if value is None:
    return None
  if isinstance(value, str) and value.isdecimal() and len(value) < 10:
    value = int(value)
  if type(value) is not int or value < 1:  # True is an int to isinstance
    raise errors.UserError(
      f"{path} has {name}={shown(value)}; it must be a whole number, at least 1"
    )
  return value


def shown(value) -> str:
  """A value for a message: on one line, cut where it is long or deep."""
  short = reprlib.Repr()
  short.maxlevel, short.maxstring, short.maxother = 3, 60, 60
  return short.repr(value)
