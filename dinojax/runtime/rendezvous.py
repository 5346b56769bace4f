"""Rendezvous of a run's processes: each calls process 0, which names those missing.

JAX's own service aborts a process, in C++, when others do not come, without a word
about which or what to do. So all meet at its address before it starts there.

Each sends its number in one line, with a proof that it knows the run's secret:
DINOJAX_SECRET of the environment, which launchers set. Without one, everybody who
reaches the port can take a process's place.
"""

import contextlib
import hashlib
import hmac
import os
import socket
import sys
import time

from dinojax import errors
from dinojax.runtime import listener

SECRET = "DINOJAX_SECRET"
LOST_AFTER = 30  # seconds without a sign from a host
ANSWER = 10  # seconds for process 0 to answer, and for its answer to be sent
FIRST_NOTE, NOTE_EVERY = 10, 30  # seconds, of notes about who is missing
CHECK = "all need the same --coordinator and --num_processes, each its own --process_id"


def gather(address: str, count: int, deadline: float) -> dict[int, socket.socket]:
  """{process: connection} of all but process 0; on process 0.

  Raises:
    UserError: the port is in use.
    TemporaryError: some did not come in time.
  """
  present: dict[int, socket.socket] = {}
  noted: set[str] = set()
  begin = time.monotonic()
  next_note = begin + FIRST_NOTE
  with listener.Listener(address) as callers:
    while missing := [k for k in range(1, count) if not _is_open(present.get(k))]:
      for connection, line in callers.first_lines(seconds=0.5):
        if wrong := _enrol(connection, line, present, count):
          if wrong not in noted:  # a stranger may try again and again
            _note(wrong)
          noted.add(wrong)
      shown = ", ".join(map(str, missing[:9])) + ", ..." * (len(missing) > 9)
      now = time.monotonic()
      if now > deadline:
        cause = (
          f"process {shown} of {count} did not call process 0, {address}, within"
          f" {now - begin:.0f} s; is each of them started, and the port open between"
          f" hosts? {CHECK}"
        )
        for connection in present.values():
          _answer(connection, f"late {cause}", count)
        raise errors.TemporaryError(cause)
      if now > next_note:
        next_note += NOTE_EVERY
        _note(f"process 0 of {count} waits at {address} for process {shown}")
  for connection in present.values():
    _answer(connection, "go", count)
  return present


def _enrol(connection, line, present, count) -> str | None:
  """Takes who has called into `present`, or returns what is wrong with it."""
  connection.settimeout(ANSWER)
  try:
    name, number, its_count, proof = line.split()
    number, its_count = int(number), int(its_count)
  except ValueError:
    name = None
  if name != "dinojax":  # a port scanner, a health check
    connection.close()
    return None
  if not hmac.compare_digest(proof.encode(), _proof(number, its_count)):
    connection.close()
    return f"somebody who does not know this run's {SECRET} called as one of it"
  if its_count != count:
    wrong = f"process {number} has --num_processes={its_count}, process 0 {count}"
  elif not 0 < number < count:
    wrong = f"there is no process {number} of {count}"
  elif _is_open(present.get(number)):
    wrong = f"two processes have --process_id={number}"
  else:
    present[number] = connection
    _answer(connection, "wait", count)
    _keep(connection)
    return None
  with connection:
    _answer(connection, f"no {wrong}", its_count)
  return f"{wrong}; {CHECK}"


def _proof(number, count):
  """Proof that a process of this number knows the secret of the run."""
  key = os.environ.get(SECRET, "").encode()
  text = f"process {number} of {count}".encode()
  return hmac.new(key, text, hashlib.sha256).hexdigest().encode()


def _answer(connection, words, count):
  with contextlib.suppress(OSError):  # gone again
    connection.sendall(_proof(0, count) + f" {words}\n".encode())


def _is_open(connection):
  """Whether a connected process is still there; it sends nothing yet."""
  if connection is None:
    return False
  try:
    return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
  except BlockingIOError:
    return True
  except OSError:
    return False


def reach(address: str, number: int, count: int, deadline: float) -> socket.socket:
  """The connection to process 0, once all others have one, too.

  Raises:
    UserError: process 0 refuses this one.
    TemporaryError: it is not there, or others do not come, in time.
  """
  host, port = listener.parse(address)
  begin = time.monotonic()
  next_note = begin + FIRST_NOTE
  while True:
    patience = min(ANSWER, max(deadline - time.monotonic(), 1))
    try:
      connection = socket.create_connection((host, port), timeout=patience)
      hello = f"dinojax {number} {count} ".encode() + _proof(number, count) + b"\n"
      connection.sendall(hello)
      word, text = _read_answer(connection, count, time.monotonic() + patience)
      if word == "wait":  # for as long as process 0 does
        _keep(connection)
        word, text = _read_answer(connection, count, None)
      if word == "go":
        return connection
      connection.close()
      if word == "late":
        raise errors.TemporaryError(text)
      if word == "no":
        raise errors.UserError(f"{text}; {CHECK}")
      reason = f"what answers there is no process 0, or has another {SECRET}"
    except TimeoutError:
      reason = "no answer, as of a firewall"
    except OSError as error:
      reason = error.strerror or str(error)
    waited = time.monotonic() - begin
    if time.monotonic() > deadline:
      raise errors.TemporaryError(
        f"process {number} of {count} found no process 0 at {address} within"
        f" {waited:.0f} s ({reason}); is it started on that host, and the port open?"
        f" {CHECK}"
      )
    if time.monotonic() > next_note:
      next_note += NOTE_EVERY
      _note(f"process {number} of {count} looks for process 0 at {address}: {reason}")
    time.sleep(0.2)


def _read_answer(connection, count, deadline):
  """(first word, rest) of what process 0 answers; ("", "") of anybody else's."""
  proof, _, line = read_line(connection, deadline).partition(" ")
  if not hmac.compare_digest(proof.encode(), _proof(0, count)):
    return "", ""
  word, _, text = line.partition(" ")
  return word, text


def _keep(connection):
  """Has the kernel watch the other host, and reading wait without end."""
  connection.settimeout(None)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for option, value in (
    (socket.TCP_KEEPIDLE, LOST_AFTER // 3),
    (socket.TCP_KEEPINTVL, LOST_AFTER // 6),
    (socket.TCP_KEEPCNT, 4),
  ):
    connection.setsockopt(socket.IPPROTO_TCP, option, value)


def read_line(connection: socket.socket, deadline: float | None = None) -> str:
  """One line, or what came of it before the end; nothing of what follows.

  Raises:
    TimeoutError: it was not complete by the deadline, of `time.monotonic`.
  """
  line = b""
  while not line.endswith(b"\n") and len(line) < listener.LONGEST:
    if deadline is not None:
      connection.settimeout(max(deadline - time.monotonic(), 1e-3))
    if not (byte := connection.recv(1)):
      break
    line += byte
  return line.decode(errors="replace").strip()


def _note(line):
  print(f"dinojax: {line}", file=sys.stderr, flush=True)
