"""Listener of process 0: where it listens, and the first line of each who connects.

Anybody may connect who reaches the port: none may keep the others from being heard, and
what a connection costs is bounded.
"""

import contextlib
import dataclasses
import ipaddress
import os
import selectors
import socket
import time
from typing import Self

from dinojax import errors

BIND_ADDRESS = "JAX_COORDINATOR_BIND_ADDRESS"  # HOST:PORT; JAX listens there, too
FIRST_LINE = 2  # seconds for one who connects to send a whole line
LONGEST = 4096  # bytes of a line
MOST_CALLERS = 256  # who have connected and not sent a line


def parse(address: str) -> tuple[str, int]:
  """Host and port of "HOST:PORT"; UserError if it is none."""
  host, _, port = address.rpartition(":")
  if not (host and port.isdecimal() and 0 < int(port) < 2**16):
    raise errors.UserError(f"--coordinator={address} must be HOST:PORT")
  return host.strip("[]"), int(port)


def bind_address(address: str) -> str | None:
  """HOST:PORT of the interface that has the address of process 0; None: of all.

  A host may not know the address by which others reach it: behind a router, in a pod
  whose name is not published yet, or where its name means 127.0.1.1, as on Debian.
  """
  if chosen := os.environ.get(BIND_ADDRESS):
    return chosen
  host, _ = parse(address)
  own = [ipaddress.ip_address(where[0]) for _, where in _own_addresses(host)]
  if not own or (all(x.is_loopback for x in own) and not _is_loopback(host)):
    return None
  return address


def _own_addresses(host):
  """(family, address) of each interface of this machine that a name stands for."""
  own = []
  with contextlib.suppress(OSError):  # an unknown name
    for family, *_, where in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
      with contextlib.suppress(OSError), socket.socket(family) as probe:
        probe.bind(where)
        own.append((family, where))
  return list(dict.fromkeys(own))


def _is_loopback(host):
  with contextlib.suppress(ValueError):
    return ipaddress.ip_address(host).is_loopback
  return host == "localhost"


@dataclasses.dataclass
class _Caller:
  """Who has connected and not sent a whole line."""

  deadline: float
  line: bytes = b""


class Listener:
  """Listens where others look for process 0, and reads from all callers at once."""

  def __init__(self, address: str):
    """Takes HOST:PORT of process 0; UserError if the port is in use."""
    self._callers = {}
    self._selector = selectors.DefaultSelector()
    self._sockets = _listen(address)
    for listening in self._sockets:
      listening.setblocking(False)
      self._selector.register(listening, selectors.EVENT_READ)

  def __enter__(self) -> Self:
    """Returns itself."""
    return self

  def __exit__(self, *_) -> None:
    """Frees the port, and closes what has not sent a line."""
    for opened in (*self._callers, *self._sockets):
      opened.close()
    self._selector.close()

  def first_lines(self, *, seconds: float) -> list[tuple[socket.socket, str]]:
    """Connections that have sent a line, with it; waits some seconds for the first."""
    found = []
    for key, _ in self._selector.select(seconds):
      if key.fileobj in self._sockets:
        self._accept(key.fileobj)
      elif key.fileobj in self._callers:
        found += self._read(key.fileobj)
    now = time.monotonic()
    for connection, caller in list(self._callers.items()):
      if now > caller.deadline:
        self._release(connection).close()
    return found

  def _accept(self, listening):
    if len(self._callers) == MOST_CALLERS:
      self._release(next(iter(self._callers))).close()
    with contextlib.suppress(OSError):  # it has gone again
      connection, _ = listening.accept()
      connection.setblocking(False)
      self._callers[connection] = _Caller(time.monotonic() + FIRST_LINE)
      self._selector.register(connection, selectors.EVENT_READ)

  def _read(self, connection):
    caller = self._callers[connection]
    try:
      data = connection.recv(LONGEST)
    except BlockingIOError:
      return []
    except OSError:  # reset
      data = b""
    caller.line += data
    if data and b"\n" not in caller.line and len(caller.line) < LONGEST:
      return []
    return [(self._release(connection), caller.line.decode(errors="replace"))]

  def _release(self, connection):
    self._selector.unregister(connection)
    del self._callers[connection]
    return connection


def _listen(address):
  """Listening sockets at the port of an address."""
  port, bound = parse(address)[1], bind_address(address)
  if bound:
    own = _own_addresses(parse(bound)[0])
  elif socket.has_dualstack_ipv6():
    own = [(socket.AF_INET6, ("::", 0))]
  else:
    own = [(socket.AF_INET, ("0.0.0.0", 0))]
  if not own:
    raise errors.UserError(f"{BIND_ADDRESS}={bound} is no address of this machine")
  try:
    return [
      socket.create_server(
        (where[0], port),
        family=family,
        backlog=1024,
        dualstack_ipv6=where[0] == "::" and socket.has_dualstack_ipv6(),
      )
      for family, where in own
    ]
  except OSError as error:
    raise errors.UserError(
      f"process 0 cannot listen at port {port} of this host ({error.strerror}); end"
      " what does, or choose another port in --coordinator"
    ) from error
