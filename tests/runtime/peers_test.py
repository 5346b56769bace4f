"""Processes that call in: who is missing or lost is named on all, in one line."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROCESS = """
import sys, time
from dinojax import errors
from dinojax.runtime import peers

address, number, count, seconds, then = sys.argv[1:]
number, count = int(number), int(count)
peers.TELL_EVERY = 10
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

  def start(address, number, count, seconds=60, then="wait"):
    command = [sys.executable, "-c", PROCESS, address, *map(str, (number, count))]
    process = subprocess.Popen(
      [*command, str(seconds), then],
      cwd=ROOT,
      env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
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
  """Reads until a process has said `line`."""
  for said in process.stdout:
    if said.strip() == line:
      return
  raise AssertionError(f"{line!r} was not said")


def finish(process):
  """Status and output of a process that ends soon."""
  output = process.communicate(timeout=60)[0]
  return process.returncode, output


def test_each_process_that_does_not_come_is_named_to_those_that_did(start, address):
  came = [start(address, k, 4, seconds=2) for k in (0, 2)]
  for process in came:
    status, output = finish(process)
    assert status == 75
    assert f"process 1, 3 of 4 did not call in at process 0, {address}" in output
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
  time.sleep(0.5)
  first = start(address, 0, 3)
  while all(twin.poll() is None for twin in twins):
    time.sleep(0.05)
  refused, enrolled = sorted(twins, key=lambda twin: twin.poll() is None)
  status, output = finish(refused)
  assert (status, "two processes have --process_id=1" in output) == (1, True)
  enrolled.kill()
  enrolled.wait()
  last = start(address, 2, 3)
  time.sleep(1)  # it has called in, and 1 of 3 is missing again
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


def test_strangers_at_the_port_disturb_nobody(start, address):
  host, port = address.split(":")
  first = start(address, 0, 2)
  for word in (b"GET / HTTP/1.1\r\n\r\n", b"", b"\xff\n"):
    while True:
      try:
        stranger = socket.create_connection((host, int(port)))
        break
      except ConnectionRefusedError:
        time.sleep(0.05)
    with stranger:
      stranger.sendall(word)
  second = start(address, 1, 2)
  for process in (first, second):
    wait_for(process, "all are here")


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_all_others_say_so_and_end(start, address, victim):
  processes = [start(address, k, 3, then="train") for k in range(3)]
  for process in processes:
    wait_for(process, "joined")
  processes.pop(victim).send_signal(signal.SIGKILL)
  for process in processes:
    # JAX, left alone, aborts them when process 0 is gone, and else waits for 100 s.
    status, output = finish(process)
    assert status == 75, output
    assert output.count(f"dinojax: process {victim} of 3 is lost: it was killed") == 1


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
  time.sleep(0.5)
  assert processes[0].poll() is None
