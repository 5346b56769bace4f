"""What is wrong with flags or a config file, in one line; free of JAX."""

import contextlib
from collections.abc import Iterator

from absl import flags

from dinojax import errors


@contextlib.contextmanager
def explained() -> Iterator[None]:
  """Turns what parsing flags and loading a config may raise into a UserError."""
  try:
    yield
  except flags.Error as error:
    raise errors.UserError(" ".join(str(error).split())) from error
  except OSError as error:
    reason = " ".join(str(error).split())
    raise errors.UserError(f"--config: {reason}") from error
  except ModuleNotFoundError as error:
    raise errors.UserError(
      f"--config: {error}; run from the folder that holds experiments/"
    ) from error
  except (KeyError, AttributeError) as error:
    reason = str(error.args[0]).replace("\\n", " ").replace("\\'", "'")
    reason = " ".join(reason.split()).removeprefix("'").removesuffix("'")
    reason = reason if " " in reason else reason.strip("\"'")
    raise errors.UserError(f"--config has no such field: {reason}") from error
