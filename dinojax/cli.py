"""What the commands share: flags, several processes, mistakes told in one line."""

import functools
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from dinojax import allocator, errors, mistakes

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file to run.")
COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, the same on every process of a run."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator, from 0.")
MULTIHOST = flags.DEFINE_bool(
  "multihost", False, "Find the other hosts by the cluster's own means (TPU, SLURM)."
)


def run(
  main: Callable[[list[str]], None],
  *,
  on_interrupt: str,
  config: bool = True,
  arguments: str = "",
  pass_unknown: bool = False,
) -> None:
  """Parses the flags and calls `main`; a UserError becomes one line and status 1.

  Args:
    main: takes the program's name and what stands behind the options.
    on_interrupt: said when a Ctrl-C ends the program.
    config: whether --config has to be given.
    arguments: what `main` wants besides options, such as "SRC DST".
    pass_unknown: whether `main` takes options that are unknown here, instead.
  """
  parse = functools.partial(
    _parse_flags,
    config=config,
    arguments=arguments.split(),
    pass_unknown=pass_unknown,
  )
  try:
    app.run(main, flags_parser=parse)
  except errors.UserError as error:
    sys.exit(f"dinojax: {error}")
  except KeyboardInterrupt:
    sys.exit(f"dinojax: {on_interrupt}")


def join_processes(*, apart: bool = False) -> tuple[int, int]:
  """Joins the other processes of a run, if there are any; before anything of JAX.

  Args:
    apart: the processes need not talk; without --coordinator they then stay apart, and
      one that ends ends no other.

  Returns:
    this process's number, and how many there are.
  """
  allocator.keep_pages()
  number, count = PROCESS_ID.value, NUM_PROCESSES.value
  if apart and COORDINATOR.value is None and None not in (number, count):
    if not 0 <= number < count:
      raise errors.UserError(
        f"--process_id={number} must be from 0 to --num_processes={count} less 1"
      )
    return number, count
  address = (COORDINATOR.value, count, number)
  if None not in address:
    jax.distributed.initialize(*address, cluster_detection_method="deactivate")
  elif address != (None, None, None):
    raise errors.UserError("--coordinator, --num_processes, --process_id go together")
  elif MULTIHOST.value:
    try:
      jax.distributed.initialize()
    except ValueError as error:
      raise errors.UserError(
        f"--multihost finds no cluster here ({error}); leave it out on one host, or"
        " give --coordinator, --num_processes and --process_id"
      ) from error
  return jax.process_index(), jax.process_count()


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
  """Flags, config file and arguments; what is wrong with them becomes one line."""
  with mistakes.explained():
    if pass_unknown:
      rest = flags.FLAGS(argv, known_only=True)
    else:
      rest = app.parse_flags_with_usage(argv)
    if config and flags.FLAGS.config is None:
      raise errors.UserError("--config=FILE is missing; try experiments/quickstart.py")
    if config:
      _ = flags.FLAGS.config.workdir  # a file that cannot be loaded shows only now
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  if missing := arguments[len(rest) - 1 :]:
    raise errors.UserError(f"{' '.join(missing)} missing; see --help")
  unknown = [x for x in rest[1:] if not (pass_unknown and x.startswith("--"))]
  if unknown := unknown[len(arguments) :]:
    raise errors.UserError(f"{unknown[0]!r} is no option; options start with --")
  return rest
