"""Command lines: the flags that they share, and errors in one line with a status.

Free of JAX, so that --help and wrong flags are answered at once.
"""

import functools
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from dinojax import errors
from dinojax.commands import mistakes, parsing
from dinojax.runtime import exits, signals

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file to run.")


def run(
  main: Callable[[list[str]], None],
  *,
  on_interrupt: str,
  config: bool = True,
  arguments: str = "",
  pass_unknown: bool = False,
) -> None:
  """Parses the flags and calls `main`; a UserError becomes one line and its status.

  Args:
    main: takes the program's name and what stands behind the options.
    on_interrupt: printed when Ctrl-C or SIGTERM ends the program.
    config: whether --config has to be given.
    arguments: what `main` needs besides options, such as "SRC DST".
    pass_unknown: whether `main` takes options that are unknown here, instead.
  """
  parse = functools.partial(
    _parse_flags,
    config=config,
    arguments=arguments.split(),
    pass_unknown=pass_unknown,
  )
  signals.end_in_order()
  try:
    app.run(main, flags_parser=parse)
  except BaseException as error:
    status = signals.status()
    orderly = isinstance(error, SystemExit) and error.code == status
    if status and not orderly:  # also where it became another error
      exits.fail(on_interrupt, status=status)
    if isinstance(error, errors.UserError):
      exits.fail(str(error), status=error.status)
    if isinstance(error, Exception):
      cause = f"{type(error).__name__}: {error}"
      exits.fail(cause, status=errors.unforeseen_status(error), error=error)
    exits.leave()
    raise


def integers(flag: flags.FlagHolder) -> tuple[int, ...]:
  """The numbers, at least 1 each, of a flag with commas; UserError if they are not."""
  try:
    numbers = tuple(int(text) for text in flag.value)
  except ValueError:
    numbers = (0,)
  if not numbers or min(numbers) < 1:
    raise errors.UserError(
      f"--{flag.name}={','.join(flag.value)} must be numbers from 1 with commas between"
    )
  return numbers


def _parse_flags(
  argv: list[str], *, config: bool, arguments: list[str], pass_unknown: bool
) -> list[str]:
  """Parses flags, config file and arguments; UserError if one is wrong."""
  rest = parsing.parse_flags(argv, known_only=pass_unknown)
  if config and flags.FLAGS.config is None:
    raise errors.UserError("--config=FILE is missing; try experiments/quickstart.py")
  if config:
    with mistakes.explained():
      _ = flags.FLAGS.config.workdir  # a file that cannot be loaded shows only now
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  if missing := arguments[len(rest) - 1 :]:
    raise errors.UserError(f"{' '.join(missing)} missing; see --help")
  unknown = [x for x in rest[1:] if not (pass_unknown and x.startswith("--"))]
  if unknown := unknown[len(arguments) :]:
    raise errors.UserError(f"{unknown[0]!r} is no option; options start with --")
  return rest
