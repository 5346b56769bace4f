"""Processes of one run on this machine: started, printed and ended together."""

import asyncio
import collections
import contextlib
import ctypes
import os
import re
import signal
import sys

from dinojax import errors

SECONDS_TO_FOLLOW = 5  # for the others to notice by themselves that one has ended
SECONDS_TO_END = 10  # from SIGTERM to SIGKILL
SECONDS_TO_CLEAN_UP = 2  # for what a killed process started, to notice it and end
LINES_TO_REPEAT = 20  # of the one that failed, if others have printed much since
SIGNALLED = (
  -signal.SIGKILL,
  -signal.SIGTERM,
  128 + signal.SIGINT,
  128 + signal.SIGTERM,
)
# How a process prints why it ends, or why another one does.
REASON = re.compile(r"dinojax: (process \d+ of \d+ ended: )?")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None)


class Process:
  """One process of the run, whose output is printed with its number in front."""

  def __init__(self, number: int, reasons: dict[str, int]):
    """Does not start it yet.

    Args:
      number: from 0.
      reasons: {error: number of the process that gave it}, of all processes.
    """
    self.number = self.explained_by = number  # the process whose line has the reason
    self.lines = 0
    self.last_lines = collections.deque(maxlen=LINES_TO_REPEAT)
    self._reasons = reasons

  async def start(self, command: list[str], environment: dict[str, str]) -> None:
    """Starts the command, in a session of its own."""
    # A pipe that asyncio takes for the process's own would have it wait for the end of
    # whatever else holds it, such as data workers.
    (output, stdout), (notes, stderr) = os.pipe(), os.pipe()
    self._process = await asyncio.create_subprocess_exec(
      *command,
      env={**os.environ, **environment},
      stdin=asyncio.subprocess.DEVNULL,
      stdout=stdout,
      stderr=stderr,
      start_new_session=True,  # a terminal's Ctrl-C comes here alone
      preexec_fn=_end_with_parent,
    )
    os.close(stdout)
    os.close(stderr)
    self._relays = [
      asyncio.create_task(self._forward_lines(output, sys.stdout)),
      asyncio.create_task(self._forward_lines(notes, sys.stderr)),
    ]

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

  async def clean_up(self) -> None:
    """Waits for its last lines, once it has ended, and ends what it left running."""
    await asyncio.wait(self._relays, timeout=SECONDS_TO_CLEAN_UP)
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    await asyncio.wait(self._relays)

  async def _forward_lines(self, pipe, stream):
    output = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
      lambda: asyncio.StreamReaderProtocol(output), os.fdopen(pipe, "rb", 0)
    )
    rest = b""
    while chunk := await output.read(2**16):
      # A progress bar returns the carriage instead of feeding the line.
      *lines, rest = re.split(rb"[\r\n]+", rest + chunk)
      for line in filter(None, lines):
        self._forward(line.decode(errors="replace"), stream)
    if rest:
      self._forward(rest.decode(errors="replace"), stream)

  def _forward(self, line, stream):
    if line.startswith("[Gloo] Rank "):  # of the CPU's network, at each start
      return
    if stream is sys.stderr and (prefix := REASON.match(line)):
      self.explained_by = self._reasons.setdefault(line[prefix.end() :], self.number)
      if self.explained_by != self.number:
        return
    line = f"[{self.number}] {line}"
    self.lines += 1
    self.last_lines.append(line)
    print(line, file=stream, flush=True)


async def run(commands: list[list[str]], environments: list[dict[str, str]]) -> int:
  """Runs the commands together until all have ended; returns the run's exit status."""
  reasons: dict[str, int] = {}
  processes: list[Process] = []
  received = _pass_on_signals(processes)
  for number, (command, environ) in enumerate(zip(commands, environments, strict=True)):
    if received:
      break
    process = Process(number, reasons)
    await process.start(command, environ)
    processes.append(process)
    if received:  # while it was started
      process.send(received[0])

  failed = ending = None
  lines = 0
  for ended in asyncio.as_completed([process.ended() for process in processes]):
    process = await ended
    if process.code and not failed:
      failed = process
      await process.clean_up()
      lines = sum(other.lines for other in processes)
      ending = asyncio.create_task(_end(processes, failed))
  await asyncio.gather(*(process.clean_up() for process in processes))
  if not processes:
    return 128 + received[0]
  if not failed:
    return 0
  ending.cancel()
  since = sum(process.lines for process in processes) - lines
  if since > LINES_TO_REPEAT // 2 and failed.code not in SIGNALLED:
    _note(f"the last lines of process {failed.number}:")
    print(*failed.last_lines, sep="\n", file=sys.stderr, flush=True)
  if received[1:]:
    _note("ended at once, unsaved, by a second signal")
  elif failed.code in (1, errors.TRY_AGAIN):  # all end so
    where = f"[{failed.explained_by}] says why above"
    _note(f"the run ended with status {failed.code}; {where}")
  else:
    _note(f"process {failed.number} of {len(processes)} {describe(failed.code)}")
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


async def _end(processes, failed):
  """Ends those that have not followed the one that failed."""
  await asyncio.sleep(SECONDS_TO_FOLLOW)
  _note(f"process {failed.number} {describe(failed.code)}; ending the others")
  for process in processes:
    process.send(signal.SIGTERM)
  await asyncio.sleep(SECONDS_TO_END)
  for process in processes:
    process.send(signal.SIGKILL)


def _pass_on_signals(processes):
  """Passes the first Ctrl-C or SIGTERM on; the next one kills. Returns what came."""
  received = []

  def pass_on(number):
    received.append(number)
    for process in processes:
      process.send(number if len(received) == 1 else signal.SIGKILL)

  for number in (signal.SIGINT, signal.SIGTERM):
    asyncio.get_running_loop().add_signal_handler(number, pass_on, number)
  return received


def _end_with_parent():
  """Has the kernel send SIGTERM to this process when the one above it is killed."""
  LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _note(line):
  print(f"dinojax: {line}", file=sys.stderr, flush=True)
