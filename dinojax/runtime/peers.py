"""The processes of a run among themselves: who is missing, who is lost, and why.

JAX's own service aborts a process, in C++, when others don't come or are gone, and says
neither who it was nor what to do. So all call in at its address before it starts there,
and stay connected to process 0, over connections that carry one word, the last: "bye"
or why a process ends. The kernel of a killed process closes its connection at once; a
host that is gone is noticed within `LOST_AFTER` seconds.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import sys
import threading
import time

from dinojax import errors

LOST_AFTER = 30  # seconds without a sign from a host
FIRST_WORD = 2  # seconds for one who connects to say who it is
TELL_EVERY = 30  # seconds between lines about who is missing
CHECK = "all need the same --coordinator and --num_processes, each its own --process_id"


class Peers:
  """The connections of a process: of process 0 to each other one, of those to it."""

  def __init__(self, number: int, count: int, connections: dict[int, socket.socket]):
    """Watches the connections, {process: socket}, from now on."""
    self._number, self._count = number, count
    self._connections = connections
    self._ending = threading.Lock()
    if number:
      # JAX aborts a process, in C++, that has lost process 0. As SIGABRT's handler,
      # sleep(SIGABRT) gives `_watch` six seconds to say so and to end it in order.
      libc = ctypes.CDLL(None)
      libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    threading.Thread(target=self._watch, daemon=True).start()

  def leave(self) -> None:
    """Tells the others that this process is done, so that none takes it for lost."""
    self._tell("bye")

  def end(self, status: int, cause: str) -> None:
    """Ends this process, and with it all others, with a status; never returns.

    Not by way of Python's end, where JAX would wait minutes for the others.

    Args:
      status: of `errors`.
      cause: what all of them say.
    """
    self._end(status, cause, f"process {self._number} of {self._count} ended: {cause}")

  def _end(self, status: int, cause: str, told: str) -> None:
    self._ending.acquire()  # for good: whoever comes second waits for the end
    os.write(sys.stderr.fileno(), f"\ndinojax: {cause}\n".encode())
    self._tell(f"end {status} {' '.join(told.split())}")
    if self._number == 0:  # JAX's service ends with it, and aborts who still uses it
      self._await_others(seconds=3)
    os._exit(status)

  def _tell(self, word: str) -> None:
    for connection in self._connections.values():
      with contextlib.suppress(OSError):  # gone by itself
        connection.sendall(f"{word}\n".encode())

  def _await_others(self, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for connection in self._connections.values():
      with contextlib.suppress(OSError):
        connection.settimeout(max(deadline - time.monotonic(), 0.01))
        while connection.recv(1024):
          pass

  def _watch(self) -> None:
    with selectors.DefaultSelector() as selector:
      for number, connection in self._connections.items():
        selector.register(connection, selectors.EVENT_READ, number)
      while selector.get_map():
        for key, _ in selector.select():
          selector.unregister(key.fileobj)
          self._hear(key.data)

  def _hear(self, number: int) -> None:
    """Takes the last word of a process."""
    why = "it was killed, ran out of memory, or its host was taken away"
    try:
      word = _read_line(self._connections[number])
    except OSError:
      word, why = "", "its host does not answer"
    if word == "bye":
      return
    if word.startswith("end "):
      _, status, cause = word.split(maxsplit=2)
      self._end(int(status), cause, cause)
    lost = (
      f"process {number} of {self._count} is lost: {why}; the same command goes on from"
      " what is saved"
    )
    self._end(errors.TRY_AGAIN, lost, lost)


def call_in(address: str, number: int, count: int, *, seconds: float) -> Peers:
  """Returns when all processes have called in at process 0, which frees the port then.

  Args:
    address: HOST:PORT of process 0.
    number: of this process, from 0.
    count: of all processes.
    seconds: to wait for the others.

  Raises:
    UserError: the address or the numbers cannot be right.
    TemporaryError: others did not come in time; names them.
  """
  host, port = _split(address)
  deadline = time.monotonic() + seconds
  if number == 0:
    return Peers(0, count, _gather(address, port, count, deadline))
  return Peers(number, count, {0: _reach(host, port, number, count, deadline)})


def _split(address: str) -> tuple[str, int]:
  host, _, port = address.rpartition(":")
  if not (host and port.isdecimal() and 0 < int(port) < 2**16):
    raise errors.UserError(f"--coordinator={address} must be HOST:PORT")
  return host.strip("[]"), int(port)


def _gather(address: str, port: int, count: int, deadline: float) -> dict:
  """{process: connection} of all but process 0; on process 0."""
  ipv6 = socket.has_dualstack_ipv6()
  try:
    listener = socket.create_server(
      ("", port),
      family=socket.AF_INET6 if ipv6 else socket.AF_INET,
      dualstack_ipv6=ipv6,
      backlog=1024,
    )
  except OSError as error:
    raise errors.UserError(
      f"process 0 cannot listen at port {port} of this host ({error.strerror}); end"
      " what does, or choose another port in --coordinator"
    ) from error
  present, begin = {}, time.monotonic()
  next_line = begin + 10
  with listener:
    while missing := [k for k in range(1, count) if not _is_open(present.get(k))]:
      listener.settimeout(1)
      with contextlib.suppress(TimeoutError):
        connection = listener.accept()[0]
        _enrol(connection, present, count)
        continue
      told = ", ".join(map(str, missing[:9])) + ", ..." * (len(missing) > 9)
      waited = time.monotonic() - begin
      if time.monotonic() > deadline:
        cause = (
          f"process {told} of {count} did not call in at process 0, {address}, within"
          f" {waited:.0f} s; is each of them started, and the port open between hosts?"
          f" {CHECK}"
        )
        for connection in present.values():
          with contextlib.suppress(OSError):
            connection.sendall(f"late {cause}\n".encode())
        raise errors.TemporaryError(cause)
      if time.monotonic() > next_line:
        next_line += TELL_EVERY
        _say(f"process 0 of {count} waits at {address} for process {told}")
  for connection in present.values():
    connection.sendall(b"go\n")
  return present


def _enrol(connection: socket.socket, present: dict, count: int) -> None:
  """Takes who connects into `present`, or tells it, or nobody, why not."""
  connection.settimeout(FIRST_WORD)
  try:
    name, number, its_count = _read_line(connection).split()
    number, its_count = int(number), int(its_count)
    if name != "dinojax":
      raise ValueError
  except (ValueError, OSError):  # a port scanner, a health check
    connection.close()
    return
  if its_count != count:
    wrong = f"process {number} has --num_processes={its_count}, process 0 {count}"
  elif not 0 < number < count:
    wrong = f"there is no process {number} of {count}"
  elif _is_open(present.get(number)):
    wrong = f"two processes have --process_id={number}"
  else:
    present[number] = connection
    connection.sendall(b"wait\n")
    _keep(connection)
    return
  _say(f"{wrong}; {CHECK}")
  with contextlib.suppress(OSError), connection:
    connection.sendall(f"no {wrong}\n".encode())


def _is_open(connection: socket.socket | None) -> bool:
  """Whether a peer that has nothing to say yet is there."""
  if connection is None:
    return False
  try:
    return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
  except BlockingIOError:
    return True
  except OSError:
    return False


def _reach(
  host: str, port: int, number: int, count: int, deadline: float
) -> socket.socket:
  """The connection to process 0, when all others have one, too."""
  begin = time.monotonic()
  next_line = begin + 10
  while True:
    try:
      connection = socket.create_connection((host, port), timeout=10)
      connection.sendall(f"dinojax {number} {count}\n".encode())
      answer = _read_line(connection)
      if answer == "wait":  # for as long as process 0 does
        _keep(connection)
        answer = _read_line(connection)
      if answer == "go":
        return connection
      connection.close()
      if answer.startswith("late "):
        raise errors.TemporaryError(answer.removeprefix("late "))
      if answer.startswith("no "):
        raise errors.UserError(f"{answer.removeprefix('no ')}; {CHECK}")
      reason = "what answers there is no process 0 that waits for others"
    except TimeoutError:
      reason = "no answer, as of a firewall"
    except OSError as error:
      reason = error.strerror or str(error)
    waited = time.monotonic() - begin
    if time.monotonic() > deadline:
      raise errors.TemporaryError(
        f"process {number} of {count} found no process 0 at {host}:{port} within"
        f" {waited:.0f} s ({reason}); is it started on that host, and the port open?"
        f" {CHECK}"
      )
    if time.monotonic() > next_line:
      next_line += TELL_EVERY
      _say(
        f"process {number} of {count} looks for process 0 at {host}:{port}: {reason}"
      )
    time.sleep(0.2)


def _keep(connection: socket.socket) -> socket.socket:
  """Lets the kernel watch for the other host, and reading wait without end."""
  connection.settimeout(None)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for option, value in (
    (socket.TCP_KEEPIDLE, LOST_AFTER // 3),
    (socket.TCP_KEEPINTVL, LOST_AFTER // 6),
    (socket.TCP_KEEPCNT, 4),
  ):
    connection.setsockopt(socket.IPPROTO_TCP, option, value)
  return connection


def _read_line(connection: socket.socket) -> str:
  """One line, or what came of it before the end; nothing of what follows."""
  line = b""
  while not line.endswith(b"\n") and len(line) < 4096 and (byte := connection.recv(1)):
    line += byte
  return line.decode(errors="replace").strip()


def _say(line: str) -> None:
  print(f"dinojax: {line}", file=sys.stderr, flush=True)
