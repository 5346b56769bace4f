r"""Runs a training as several processes on this machine, as several hosts would run it.

  python launch/local.py --processes=2 --devices=4 --config=experiments/quickstart.py \
    --config.group_size=8

Real processes that talk over loopback: for trying on one machine what several
hosts do together. Options that are unknown here go to dinojax.main as they are. Ctrl-C
and SIGTERM are passed on, so that the run saves and ends; a second one ends it at once.
When a process fails, all end, and the last line says which one and of what.
"""

import argparse
import asyncio
import collections
import contextlib
import ctypes
import os
import pathlib
import re
import signal
import socket
import sys

if __package__ in (None, ""):  # run as a file, not imported: the project is its parent
  sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from dinojax import errors

SECONDS_TO_FOLLOW = 5  # for the others to see by themselves that one has ended
SECONDS_TO_END = 10  # from SIGTERM to SIGKILL
SECONDS_TO_TIDY = 2  # for what a killed process started, to see it and clean up
LINES_TO_REPEAT = 20  # of the one that failed, should the others have said much since
TOLD_TO_END = (
  -signal.SIGKILL,
  -signal.SIGTERM,
  128 + signal.SIGINT,
  128 + signal.SIGTERM,
)
# Or XLA starts what does not depend on each other at once and in any order, and devices
# wait for each other in different collectives, for ever.
IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None)


class Process:
  """One process of the run: what it prints goes on with its number in front."""

  def __init__(self, number: int):
    """Does not start it yet."""
    self.number = number
    self.lines = 0
    self.last_lines = collections.deque(maxlen=LINES_TO_REPEAT)

  async def start(self, command: list[str], environment: dict[str, str]) -> None:
    """Starts the command, in a session of its own."""
    # A pipe that asyncio takes for the process's own would have it wait for the end of
    # whatever else holds it, such as data workers.
    read, write = os.pipe()
    self._process = await asyncio.create_subprocess_exec(
      *command,
      env={**os.environ, **environment},
      stdin=asyncio.subprocess.DEVNULL,
      stdout=write,
      stderr=asyncio.subprocess.STDOUT,
      start_new_session=True,  # a terminal's Ctrl-C comes here alone
      preexec_fn=_end_with_parent,
    )
    os.close(write)
    self._relay = asyncio.create_task(self._pass_on_lines(read))

  @property
  def code(self) -> int | None:
    """Exit status, negative for a signal; None while it runs."""
    return self._process.returncode

  def send(self, number: int) -> None:
    """Sends it a signal, unless it has ended."""
    if self.code is None:
      self._process.send_signal(number)

  async def ended(self) -> "Process":
    """Waits for its end, and returns itself."""
    await self._process.wait()
    return self

  async def tidy(self) -> None:
    """Waits for its last lines, once it has ended, and ends what it may have left."""
    await asyncio.wait([self._relay], timeout=SECONDS_TO_TIDY)
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    await self._relay

  async def _pass_on_lines(self, pipe):
    output = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
      lambda: asyncio.StreamReaderProtocol(output), os.fdopen(pipe, "rb", 0)
    )
    rest = b""
    while chunk := await output.read(2**16):
      # A progress bar returns the carriage instead of feeding the line.
      *lines, rest = re.split(rb"[\r\n]+", rest + chunk)
      for line in filter(None, lines):
        self._pass_on(line)
    if rest:
      self._pass_on(rest)

  def _pass_on(self, line):
    if line.startswith(b"[Gloo] Rank "):  # greetings of the CPU's network
      return
    line = f"[{self.number}] {line.decode(errors='replace')}"
    self.lines += 1
    self.last_lines.append(line)
    print(line, flush=True)


async def run(commands: list[list[str]], environments: list[dict[str, str]]) -> int:
  """Runs the commands together until all have ended; returns the run's exit status."""
  processes = [Process(number) for number in range(len(commands))]
  for process in processes:
    await process.start(commands[process.number], environments[process.number])
  seen = _pass_on_signals(processes)

  failed = ending = None
  lines = 0
  for ended in asyncio.as_completed([process.ended() for process in processes]):
    process = await ended
    if process.code and not failed:
      failed = process
      await process.tidy()
      lines = sum(other.lines for other in processes)
      if any(other.code is None for other in processes):
        _say(f"process {process.number} {describe(process.code)}; ending the others")
        ending = asyncio.create_task(_end(processes))
  await asyncio.gather(*(process.tidy() for process in processes))
  if not failed:
    return 0
  if ending:
    ending.cancel()
  since = sum(process.lines for process in processes) - lines
  if since > LINES_TO_REPEAT // 2 and failed.code not in TOLD_TO_END:
    _say(f"process {failed.number} had said at last:")
    print("\n".join(failed.last_lines), flush=True)
  if seen[1:]:
    _say("ended at once, unsaved, by a second signal")
  elif failed.code in (1, errors.TRY_AGAIN):  # all end so, and it is said above why
    _say(f"the run ended with status {failed.code}")
  else:
    _say(f"process {failed.number} of {len(processes)} {describe(failed.code)}")
  return failed.code if failed.code > 0 else 128 - failed.code


def describe(code: int) -> str:
  """How a process ended, in words, from its exit status as `subprocess` has it."""
  if code == -signal.SIGKILL:
    return "was killed by SIGKILL (by hand, or for want of memory: see dmesg)"
  if code < 0:
    return f"was killed by {signal.Signals(-code).name}"
  if code - 128 in (signal.SIGINT, signal.SIGTERM):
    return f"ended on {signal.Signals(code - 128).name}"
  return f"ended with status {code}"


async def _end(processes):
  """Ends those that have not followed the one that failed."""
  await asyncio.sleep(SECONDS_TO_FOLLOW)
  for process in processes:
    process.send(signal.SIGTERM)
  await asyncio.sleep(SECONDS_TO_END)
  for process in processes:
    process.send(signal.SIGKILL)


def _pass_on_signals(processes):
  """Passes the first Ctrl-C or SIGTERM on; the next one kills. Returns those seen."""
  seen = []

  def pass_on(number):
    seen.append(number)
    for process in processes:
      process.send(number if len(seen) == 1 else signal.SIGKILL)

  for number in (signal.SIGINT, signal.SIGTERM):
    asyncio.get_running_loop().add_signal_handler(number, pass_on, number)
  return seen


def _end_with_parent():
  """Has the kernel send SIGTERM to this process when the one above it is killed."""
  LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _say(line):
  print(f"dinojax: {line}", file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
  def error(self, message):
    raise errors.UserError(f"{message}; see --help")


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """Our own options, and the rest for the processes; UserError if they won't do."""
  parser = _Parser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
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
  """What tells process `number` its devices."""
  if not gpus:
    return {
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": str(devices),
      "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {IN_ORDER}".strip(),
    }
  ids = [str(i) for i in range(number * devices, (number + 1) * devices)]
  if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
    ids = visible.split(",")[number * devices : (number + 1) * devices]
  return {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ",".join(ids)}


def peers(number: int, count: int, port: int) -> tuple[list[str], dict[str, str]]:
  """Options and environment that tell process `number` where the others are."""
  if count == 1:
    return [], {}  # JAX would send over the network what devices of a process share
  options = [
    f"--coordinator=localhost:{port}",
    *(f"--num_processes={count}", f"--process_id={number}"),
  ]
  # All interfaces of the machine, if not told.
  return options, {"JAX_COORDINATOR_BIND_ADDRESS": f"localhost:{port}"}


def free_port() -> int:
  """A port that nobody on this machine listens on."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def main(argv: list[str]) -> int:
  """Starts the processes and returns the exit status of the first that failed, or 0."""
  options, rest = parse(argv)
  # When nobody reads on (| head), this ends, and so the processes do.
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)
  port = free_port()
  commands, environments = [], []
  for number in range(options.processes):
    flags, address = peers(number, options.processes, port)
    devices = environment(number, devices=options.devices, gpus=options.gpus)
    commands.append([sys.executable, "-m", options.module, *rest, *flags])
    environments.append({**devices, **address})
  return asyncio.run(run(commands, environments))


if __name__ == "__main__":
  try:
    sys.exit(main(sys.argv[1:]))
  except errors.UserError as error:
    sys.exit(f"dinojax: {error}")
