"""Processes that meet: who is missing or lost is named on all, in one line."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROCESS = """
import sys, time
from dinojax import errors
from dinojax.runtime import peers, rendezvous

address, number, count, seconds, then = sys.argv[1:]
number, count = int(number), int(count)
rendezvous.FIRST_NOTE = rendezvous.NOTE_EVERY = 0.2
try:
  line = peers.call_in(address, number, count, seconds=float(seconds))
except errors.UserError as error:
  print(error)
  sys.exit(error.status)
print("all are here", flush=True)
if then == "train":
  import jax
  jax.distributed.initialize(
    address, count, number, cluster_detection_method="deactivate"
  )
  print("joined", flush=True)
  sys.setswitchinterval(1)  # what JAX does in C++ is then faster than any thread
  while True:
    pass
if then == "fail":
  line.end(1, "config.foo=3 must be 4")
if then == "leave":
  line.leave()
  sys.exit()
time.sleep(60)
"""


@pytest.fixture
def start():
  """Starts processes of a run by their arguments; ends what is left of them."""
  started = []

  def start(address, number, count, seconds=60, then="wait", secret="a secret"):
    environ = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROCESS, address, *map(str, (number, count))]
    process = subprocess.Popen(
      [*command, str(seconds), then],
      cwd=ROOT,
      env={**os.environ, **environ, "DINOJAX_SECRET": secret},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()
    process.communicate()


@pytest.fixture
def address():
  """Of a port that nobody uses."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return f"localhost:{probe.getsockname()[1]}"


def wait_for(process, line):
  """Reads until a process has printed `line`, or one that ends so."""
  for printed in process.stdout:
    if printed.strip().endswith(line):
      return
  raise AssertionError(f"{line!r} was not printed")


def finish(process):
  """Status and output of a process that ends soon, without notes on who is missing."""
  output = process.communicate(timeout=60)[0].splitlines(keepends=True)
  notes = (" waits at ", " looks for process 0 at ")
  return process.returncode, "".join(
    line for line in output if not any(note in line for note in notes)
  )


def connect(address):
  """A stranger's connection to process 0, once it listens."""
  host, port = address.split(":")
  while True:
    with contextlib.suppress(ConnectionRefusedError):
      return socket.create_connection((host, int(port)), timeout=60)
    time.sleep(0.02)


def test_each_process_that_does_not_come_is_named_to_those_that_did(start, address):
  came = [start(address, k, 4, seconds=2) for k in (0, 2)]
  for process in came:
    status, output = finish(process)
    assert status == 75
    assert f"process 1, 3 of 4 did not call process 0, {address}, within" in output
    assert len(output.splitlines()) == 1


def test_whoever_finds_no_process_0_says_where_it_looked_and_why(start, address):
  lost = start(address, 1, 2, seconds=1)
  nowhere = start("no-such-host.invalid:29000", 1, 2, seconds=1)
  status, output = finish(lost)
  assert status == 75
  assert f"process 1 of 2 found no process 0 at {address}" in output
  assert "Connection refused" in output
  status, output = finish(nowhere)
  assert status == 75
  assert "at no-such-host.invalid:29000 within" in output
  assert "(Connection refused)" not in output


def test_process_0_may_come_last_and_one_that_died_may_come_again(start, address):
  twins = [start(address, 1, 3) for _ in range(2)]
  for twin in twins:
    wait_for(twin, "Connection refused")
  first = start(address, 0, 3)
  while all(twin.poll() is None for twin in twins):
    time.sleep(0.05)
  refused, enrolled = sorted(twins, key=lambda twin: twin.poll() is None)
  status, output = finish(refused)
  assert (status, "two processes have --process_id=1" in output) == (1, True)
  enrolled.kill()
  enrolled.wait()
  last = start(address, 2, 3)
  wait_for(first, "for process 1")  # process 2 has come
  for process in (start(address, 1, 3), last, first):
    wait_for(process, "all are here")


@pytest.mark.parametrize(
  ("address", "number", "said"),
  [
    ("localhost", 1, "--coordinator=localhost must be HOST:PORT"),
    ("localhost:99999", 1, "--coordinator=localhost:99999 must be HOST:PORT"),
  ],
)
def test_an_address_that_cannot_be_one_is_refused(start, address, number, said):
  assert finish(start(address, number, 2)) == (1, f"{said}\n")


def test_other_numbers_of_processes_and_a_port_in_use_are_refused(start, address):
  first = start(address, 0, 3)
  status, output = finish(start(address, 1, 2))
  assert status == 1
  assert "process 1 has --num_processes=2, process 0 3; all need the same" in output
  status, output = finish(start(address, 0, 2))
  port = address.split(":")[1]
  assert status == 1
  assert f"process 0 cannot listen at port {port} of this host (Address al" in output
  assert first.poll() is None


def test_process_0_listens_where_its_address_is_and_nowhere_else(start, address):
  first = start(address, 0, 2)
  connect(address).close()
  found = psutil.Process(first.pid).net_connections(kind="inet")
  listening = {x.laddr.ip for x in found if x.status == psutil.CONN_LISTEN}
  assert listening and listening <= {"127.0.0.1", "::1"}


def test_whatever_strangers_send_the_others_are_heard(start, address):
  first = start(address, 0, 2)
  words = (b"GET / HTTP/1.1\r\n\r\n", b"", b"\xff\n", b"x" * 100_000, b"dinojax 1")
  strangers = [connect(address) for _ in range(300)]  # who say nothing
  for word in words:
    strangers.append(connect(address))
    with contextlib.suppress(ConnectionError):
      strangers[-1].sendall(word)
  second = start(address, 1, 2)
  for process in (first, second):
    wait_for(process, "all are here")
  for stranger in strangers:
    stranger.close()


def test_slow_strangers_do_not_keep_process_0_from_its_deadline(start, address):
  first = start(address, 0, 2, seconds=3)
  ended = threading.Event()

  def send_slowly():
    while not ended.is_set():
      with contextlib.suppress(OSError), connect(address) as stranger:
        while not ended.wait(0.1):
          stranger.sendall(b"d")

  threads = [threading.Thread(target=send_slowly, daemon=True) for _ in range(4)]
  connect(address).close()
  begin = time.monotonic()
  for thread in threads:
    thread.start()
  status, output = finish(first)
  ended.set()
  assert (status, "process 1 of 2 did not call process 0" in output) == (75, True)
  assert time.monotonic() - begin < 15  # seconds, on a busy machine too


def test_who_does_not_know_the_secret_takes_nobodys_place(start, address):
  first = start(address, 0, 2)
  with connect(address) as stranger:
    stranger.sendall(b"dinojax 1 2\n")
    assert stranger.recv(99) == b""
  other = start(address, 1, 2, seconds=1, secret="another")  # of another run
  status, output = finish(other)
  assert status == 75
  assert "no process 0, or has another DINOJAX_SECRET" in output
  wait_for(
    first, "somebody who does not know this run's DINOJAX_SECRET called as one of it"
  )
  second = start(address, 1, 2)
  for process in (first, second):
    wait_for(process, "all are here")


def test_a_stranger_in_process_0s_place_is_not_believed(start, address):
  host, port = address.split(":")
  with socket.create_server((host, int(port))) as server:
    second = start(address, 1, 2, seconds=1)
    server.settimeout(60)
    stranger, _ = server.accept()
    assert stranger.recv(999).startswith(b"dinojax 1 2 ")
    stranger.sendall(b"no change your plans\n")
    status, output = finish(second)
  assert status == 75
  assert "change your plans" not in output


@pytest.mark.process
@pytest.mark.parametrize(("victim", "count"), [(0, 2), (1, 3)])
def test_when_one_is_killed_all_others_say_so_and_end(start, address, victim, count):
  processes = [start(address, k, count, then="train") for k in range(count)]
  for process in processes:
    wait_for(process, "joined")
  processes.pop(victim).send_signal(signal.SIGKILL)
  for process in processes:
    # JAX, left alone, aborts them when process 0 is gone, and else waits for 100 s.
    status, output = finish(process)
    assert status == 75, output
    assert output.count(f"dinojax: process {victim} of {count} is lost: it was") == 1


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_ends_by_an_error_all_end_with_its_status_and_line(
  start, address, victim
):
  processes = [
    start(address, k, 3, then="fail" if k == victim else "wait") for k in range(3)
  ]
  for k, process in enumerate(processes):
    status, output = finish(process)
    assert status == 1
    told = "" if k == victim else f"process {victim} of 3 ended: "
    assert f"dinojax: {told}config.foo=3 must be 4\n" in output


def test_one_that_takes_leave_is_not_lost(start, address):
  processes = [start(address, k, 3, then="leave" if k else "wait") for k in range(3)]
  for process in processes[1:]:
    assert finish(process) == (0, "all are here\n")
  wait_for(processes[0], "all are here")
  # Were they lost, it would end within moments of it.
  with pytest.raises(subprocess.TimeoutExpired):
    processes[0].wait(0.5)
