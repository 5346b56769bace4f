"""Ownership of an output: one process at a time writes a run, a file or a folder.

Every process that wants to write NAME puts an owner file of its own beside it,
`.NAME.owner-TOKEN`, with host, process id and start. It owns NAME as soon as no owner
file of another running process is there. Each looks only after its own file is written,
so two never own NAME at once. This needs neither file locks nor hard links, which NFS
and mounted buckets may lack.

An owner file that a killed process left blocks nobody. On its own machine the process
table shows that the process is gone. From another machine its heartbeat does: an owner
touches its file every BEAT seconds, and one that stays untouched for STALE is dead.
"""

import contextlib
import dataclasses
import glob
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from dinojax import errors

BEAT = 10  # seconds between two touches of an owner file
STALE = 60  # seconds without a touch, after which an owner on another host is dead
YIELD = 5  # seconds that the earlier of two starts leaves to the later to withdraw
POLL = 0.5  # seconds between two looks at the other owner files
BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")


class TakenError(errors.UserError):
  """Another process that runs owns the output."""


@dataclasses.dataclass(frozen=True)
class Owner:
  """A process that owns an output, or asks for it.

  host: its name. pid: its process id. started: when the process started, in clock ticks
  since the machine did. place: machine, process namespace and folder; where they are
  the same, `pid` names the same process. since: when it asked, in seconds since 1970.
  share: (i, n), the i-th of n shares of the output; (0, 1) is all of it.
  """

  host: str
  pid: int
  started: int | None
  place: str
  since: float
  share: tuple[int, int]

  def runs(self) -> bool:
    """Whether the process is there; asked on its own machine."""
    return _start_time(self.pid) == self.started

  def conflicts(self, share: tuple[int, int]) -> bool:
    """Whether its share overlaps another."""
    return self.share[1] != share[1] or self.share[0] == share[0]

  def __str__(self) -> str:
    """Names process, host and time for a message."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
    return f"process {self.pid} on {self.host} since {since}"


class Claim:
  """An output that this process owns."""

  def __init__(self, path: pathlib.Path, label: str):
    """Starts the heartbeat. path: the owner file. label: the output, for messages."""
    self._path, self._label = path, label
    self._ended = threading.Event()
    threading.Thread(target=self._beat, daemon=True).start()

  def check(self) -> None:
    """Raises UserError if the output was removed or taken over meanwhile."""
    if not self._path.exists():
      raise errors.UserError(
        f"{self._label} was removed, or taken over by another process, while this one"
        " wrote there; restart it"
      )

  def release(self) -> None:
    """Leaves the output to others."""
    self._ended.set()
    with contextlib.suppress(OSError):  # removed, or the file system is gone
      self._path.unlink()

  def _beat(self) -> None:
    while not self._ended.wait(BEAT):
      with contextlib.suppress(OSError):  # `check` reports a file that is gone
        os.utime(self._path)


@contextlib.contextmanager
def owned(
  folder: pathlib.Path, name: str, *, label: str, share: tuple[int, int] = (0, 1)
) -> Iterator[Claim]:
  """Owns an output while the context lasts.

  Args:
    folder: where owner files lie; made if it is missing. All hosts must share it.
    name: of the output in `folder`, part of the owner file's name.
    label: the output in the user's words, such as "--out=/data/web".
    share: (i, n) of processes that write n shares of the output side by side.

  Yields:
    the claim.

  Raises:
    TakenError: another process that runs owns it; names process, host and time.
    UserError: the folder cannot be written.
  """
  folder = folder.absolute()
  path = folder / f".{name}.owner-{uuid.uuid4().hex}"
  me = Owner(
    host=socket.gethostname(),
    pid=os.getpid(),
    started=_start_time(os.getpid()),
    place=_place(folder),
    since=time.time(),
    share=share,
  )
  try:
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(me)))
  except OSError as error:
    with contextlib.suppress(OSError):
      path.unlink(missing_ok=True)
    raise errors.of_disk(error)(
      f"{label} cannot be written ({error.strerror or error}); {folder} must be a"
      " folder in which this user may write, with room"
    ) from error
  claim = Claim(path, label)
  try:
    _Others(path, name, me, label).wait_until_gone()
    yield claim
  finally:
    claim.release()


class _Others:
  """The other owners of an output: each runs, is dead, or may be either so far."""

  def __init__(self, path: pathlib.Path, name: str, me: Owner, label: str):
    """path: this process's owner file. me: its content. name, label: as in `owned`."""
    self._path, self._name, self._me, self._label = path, name, me, label
    self._now = path.stat().st_mtime  # by the file system's clock, as the others' are
    self._begun = time.monotonic()
    self._first_stamps: dict[pathlib.Path, float] = {}

  def wait_until_gone(self) -> None:
    """Returns when no other owner is left; raises TakenError if one runs."""
    noted = False
    while True:
      undecided = None
      for path in self._path.parent.glob(f".{glob.escape(self._name)}.owner-*"):
        try:
          owner, stamp = _read(path)
        except FileNotFoundError:  # it has ended
          continue
        if path == self._path or (owner and not owner.conflicts(self._me.share)):
          continue
        runs = self._runs(path, owner, stamp)
        owner = owner or "another process"
        if runs:
          raise TakenError(
            f"{self._label} is in use by {owner}; wait until it ends, or end it (a"
            " process that is gone blocks nothing)"
          )
        if runs is None:
          undecided = owner
        else:
          with contextlib.suppress(OSError):  # another user's, or removed meanwhile
            path.unlink()
      if not undecided:
        return
      if not noted and self._waited() > YIELD:
        line = (
          f"dinojax: {self._label} was in use by {undecided}; waiting up to {STALE} s"
          " to see whether that process still runs"
        )
        print(errors.printable(line), file=sys.stderr, flush=True)
        noted = True
      time.sleep(POLL)

  def _runs(self, path: pathlib.Path, owner: Owner | None, stamp: float) -> bool | None:
    """Whether another owner runs; None if that is open so far."""
    if owner and owner.place == self._me.place:
      if not owner.runs():
        return False
      # Of two that start at once the later one withdraws; the earlier waits for that.
      later = (owner.since, path.name) > (self._me.since, self._path.name)
      return None if later and self._waited() < YIELD else True
    if stamp != self._first_stamps.setdefault(path, stamp):
      return True
    return False if self._now - stamp > STALE or self._waited() > STALE else None

  def _waited(self) -> float:
    return time.monotonic() - self._begun


def _read(path: pathlib.Path) -> tuple[Owner | None, float]:
  """The owner that a file names, None if it is damaged or half written; and its mtime.

  Raises FileNotFoundError if it is gone.
  """
  try:
    with open(path) as file:  # opened, not just looked up: NFS asks its server then
      stamp = os.fstat(file.fileno()).st_mtime
      values = json.load(file)
    number, count = values["share"]
    owner = Owner(
      host=str(values["host"]),
      pid=int(values["pid"]),
      started=values["started"],
      place=values["place"],
      since=float(values["since"]),
      share=(int(number), int(count)),
    )
    str(owner)  # a time that there is
    return owner, stamp
  except PermissionError:  # another user's
    return None, path.stat().st_mtime
  except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
    return None, stamp


def _start_time(pid: int) -> int | None:
  """Start of a process, in clock ticks since the machine's; None if it is gone."""
  try:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
  except OSError:
    return None
  # "PID (NAME) STATE PPID ...", of which NAME may hold anything; the start is field 22.
  state, *fields = stat.rpartition(")")[2].split()
  return None if state in "ZX" else int(fields[18])


def _place(folder: pathlib.Path) -> str:
  """Machine, process namespace and folder: the copy of a run is another place."""
  parts = [socket.gethostname(), str(folder.resolve())]
  with contextlib.suppress(OSError):
    parts += [BOOT_ID.read_text().strip(), str(os.stat("/proc/self/ns/pid").st_ino)]
  return " ".join(parts)
