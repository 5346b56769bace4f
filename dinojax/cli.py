"""What the commands share: --config, its overrides, and mistakes told in one line."""

import sys
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from dinojax import errors

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file to run.")


def run(main: Callable[[list[str]], None], *, on_interrupt: str) -> None:
  """Parses the flags and calls `main`; a UserError becomes one line and status 1.

  Args:
    main: takes what stands behind the options.
    on_interrupt: said when a Ctrl-C ends the program.
  """
  try:
    app.run(main, flags_parser=_parse_flags)
  except errors.UserError as error:
    sys.exit(f"dinojax: {error}")
  except KeyboardInterrupt:
    sys.exit(f"dinojax: {on_interrupt}")


def _parse_flags(argv: list[str]) -> list[str]:
  """Flags and config file; what is wrong with them becomes one line."""
  try:
    rest = app.parse_flags_with_usage(argv)
    if flags.FLAGS.config is None:
      raise errors.UserError("--config=FILE is missing; try experiments/quickstart.py")
    _ = flags.FLAGS.config.workdir  # a file that cannot be loaded shows only now
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
    raise errors.UserError(f"--config has no such field: {reason}") from error
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  if len(rest) > 1:
    raise errors.UserError(f"{rest[1]!r} is no option; options start with --")
  return rest
