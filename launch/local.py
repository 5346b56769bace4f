r"""Several processes on this machine that train together, as several hosts would.

  python launch/local.py --processes=2 --devices=4 --config=experiments/quickstart.py \
    --config.group_size=4

They talk over loopback: for trying on one machine what several hosts do together.
Options that are unknown here go to dinojax.main, whose --help lists them. Ctrl-C and
SIGTERM are passed on, so that the run saves and ends; a second one ends it at once.
When a process fails, all end, and the last line names it. An error that several
processes share is printed once.
"""

import argparse
import asyncio
import os
import pathlib
import secrets
import signal
import socket
import sys

if __package__ in (None, ""):  # run as a file, not imported: the project is its parent
  sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)
  from dinojax.runtime import signals

  signals.end_at_once()

from dinojax import errors
from dinojax.runtime import rendezvous
from launch import children

ROOT = pathlib.Path(__file__).resolve().parent.parent


class _Parser(argparse.ArgumentParser):
  def error(self, message):
    raise errors.UserError(f"{message}; see --help")


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """Our own options, and the rest for the processes; UserError if they won't do."""
  parser = _Parser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    add_help=False,
  )
  parser.add_argument(
    *("-h", "--help", "--helpshort", "--helpfull"), action="help", help="show this"
  )
  parser.add_argument("--processes", type=int, default=2, help="2 if not given")
  parser.add_argument(
    "--devices", type=int, default=1, help="of each process; 1 if not given"
  )
  parser.add_argument(
    "--gpus",
    action="store_true",
    help="devices are GPUs, and not virtual ones of a CPU",
  )
  parser.add_argument(
    "--module", default="dinojax.main", help="what to run, dinojax.main if not given"
  )
  options, rest = parser.parse_known_args(argv)
  for name in ("processes", "devices"):
    if getattr(options, name) < 1:
      raise errors.UserError(f"--{name}={getattr(options, name)} must be at least 1")
  return options, rest


def environment(number: int, *, devices: int, gpus: bool) -> dict[str, str]:
  """Environment that gives process `number` its devices."""
  if not gpus:
    return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
  ids = [str(i) for i in range(number * devices, (number + 1) * devices)]
  if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
    ids = visible.split(",")[number * devices : (number + 1) * devices]
  return {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ",".join(ids)}


def place(number: int, count: int, port: int) -> list[str]:
  """Options by which process `number` finds the others."""
  if count == 1:
    return []  # JAX would send over the network what devices of a process share
  numbers = (f"--num_processes={count}", f"--process_id={number}")
  return [f"--coordinator=localhost:{port}", *numbers]


def free_port() -> int:
  """A port of this machine that is not in use."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def main(argv: list[str]) -> int:
  """Starts the processes and returns the exit status of the first that failed, or 0."""
  options, rest = parse(argv)
  # Where nobody reads its output any more (| head), this ends, and so do the processes.
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)
  port = free_port()
  path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
  shared = {"PYTHONPATH": path, rendezvous.SECRET: secrets.token_hex(16)}
  commands, environments = [], []
  for number in range(options.processes):
    devices = environment(number, devices=options.devices, gpus=options.gpus)
    environments.append({**shared, **devices})
    flags = place(number, options.processes, port)
    commands.append([sys.executable, "-m", options.module, *rest, *flags])
  return asyncio.run(children.run(commands, environments))


if __name__ == "__main__":
  try:
    sys.exit(main(sys.argv[1:]))
  except errors.UserError as error:
    sys.exit(f"dinojax: {errors.printable(str(error))}")
