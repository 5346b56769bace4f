"""User errors in flags or in a config file, in one line; free of JAX."""

import contextlib
import difflib
import re
from collections.abc import Iterator

from absl import flags

from dinojax import errors


@contextlib.contextmanager
def explained() -> Iterator[None]:
  """Turns what parsing flags and loading a config may raise into a UserError."""
  try:
    yield
  except flags.UnrecognizedFlagError as error:
    raise errors.UserError(_unknown_flag(error)) from error
  except flags.Error as error:
    raise errors.UserError(" ".join(str(error).split())) from error
  except OSError as error:
    reason = error.__cause__ or error  # ml_collections wraps it when a field is read
    raise errors.UserError(f"--config: {' '.join(str(reason).split())}") from error
  except ModuleNotFoundError as error:
    raise errors.UserError(
      f"--config: {error}; install it, or add its folder to PYTHONPATH"
    ) from error
  except (KeyError, AttributeError) as error:
    raise errors.UserError(_unknown_field(str(error.args[0]))) from error


def _unknown_field(text: str) -> str:
  """One line for what ml_collections, or Python in a config file, reports of a name."""
  text = text.replace("\\n", " ").replace("\\'", "'")
  if not (name := re.match(r"['\"]*([\w.]+)['\"]*(\s|$)", text)):
    return f"--config: {' '.join(text.split())}"
  near = re.search(r'Did you mean "([^"]+)"', text)
  advice = f"; did you mean {near[1]}?" if near else ""
  return f"--config has no such field: {name[1]}{advice}"


def _unknown_flag(error: flags.UnrecognizedFlagError) -> str:
  group, dot, field = error.flagname.partition(".")
  if dot and difflib.get_close_matches(group, ["config"]):
    return f"--{error.flagname} is no option; did you mean --config.{field}?"
  text = " ".join(str(error).split())
  return text if "Did you mean" in text else f"{text}; --help lists the options"
