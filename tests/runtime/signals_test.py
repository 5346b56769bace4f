"""Ctrl-C and SIGTERM end a command from its first moment on, with 130 and 143."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BOTH = pytest.mark.parametrize(
  ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
READY = "print('working', flush=True)"
NATIVE = "hashlib.pbkdf2_hmac('sha1', b'', b'', 2**31 - 1)"
WORK = """
import gc, hashlib, sys, threading, time
from dinojax.runtime import signals

signals.SECONDS_TO_END = 0.2
signals.end_in_order()
try:
  exec(sys.argv[1])
except signals.Interrupted:
  print("closed in order", signals.status(), flush=True)
  if "stuck" in sys.argv:
    print("waiting", flush=True)
    time.sleep(60)
"""


def start(*arguments):
  """Starts Python."""
  return subprocess.Popen(
    [sys.executable, *arguments],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def wait_for(process, text):
  """Reads until a line with a text."""
  for line in process.stdout:
    if text in line:
      return
  raise AssertionError(f"{text!r} was not printed")


def finish(process):
  """Status and output of a process that ends soon."""
  output = process.communicate(timeout=60)[0]
  return process.returncode, output


@pytest.mark.process
@BOTH
def test_a_command_that_still_imports_ends_at_once(number, status):
  process = start("-X", "importtime", "-m", "dinojax.main")
  wait_for(process, "| dinojax\n")  # imported; JAX takes seconds
  process.send_signal(number)
  code, output = finish(process)
  assert code == status
  assert output.endswith(f"\ndinojax: ended by {number.name}\n")
  assert "Traceback" not in output


def test_a_program_that_imports_dinojax_keeps_its_handlers():
  program = "import signal\nbefore = [signal.getsignal(n) for n in (2, 15)]\n"
  program += "import dinojax\nprint(before == [signal.getsignal(n) for n in (2, 15)])"
  assert finish(start("-c", program)) == (0, "True\n")


@BOTH
def test_work_is_closed_in_order(number, status):
  process = start("-c", WORK, f"{READY}; time.sleep(60)")
  wait_for(process, "working")
  process.send_signal(number)
  assert finish(process) == (0, f"closed in order {status}\n")


@BOTH
def test_a_second_signal_ends_what_does_not_close(number, status):
  work = f"signals.SECONDS_TO_END = 60; {READY}; time.sleep(60)"
  process = start("-c", WORK, work, "stuck")
  wait_for(process, "working")
  process.send_signal(number)
  wait_for(process, "waiting")
  process.send_signal(number)
  assert finish(process) == (status, f"\ndinojax: ended by {number.name}\n")


@pytest.mark.parametrize(
  ("work", "more"),
  [
    (f"{READY}; time.sleep(60)", ["stuck"]),  # what closes hangs
    # Native code, also where the signal comes before it is entered.
    (f"try:\n  {READY}; {NATIVE}\nexcept signals.Interrupted:\n  {NATIVE}", []),
  ],
)
def test_what_does_not_end_by_itself_is_ended_after_a_while(work, more):
  process = start("-c", WORK, work, *more)
  wait_for(process, "working")
  process.send_signal(signal.SIGTERM)
  code, output = finish(process)
  assert code == 143
  assert output.endswith("\ndinojax: ended by SIGTERM\n")


def test_an_exception_that_python_drops_is_raised_again():
  work = """
def callback(phase, _):
  if phase == "start":
    gc.callbacks.clear()
    print("collecting", flush=True)
    time.sleep(60)
gc.callbacks.append(callback)
signals.SECONDS_TO_END = 60
gc.collect()
time.sleep(60)
"""
  process = start("-c", WORK, work)
  wait_for(process, "collecting")
  process.send_signal(signal.SIGTERM)
  assert finish(process) == (0, "closed in order 143\n")
