"""Processes that a test starts: their environment, their numbers, that none is left."""

import os
import pathlib
import time

import psutil

TESTS = pathlib.Path(__file__).parent


def environment(devices):
  """The environment of a process with so many CPU devices, that compiles as fast.

  It has no PyTorch, like most users, and imports dinojax of this folder from anywhere.
  """
  flags = os.environ["XLA_FLAGS"].replace("count=8", f"count={devices}")
  path = f"{TESTS.parent}{os.pathsep}{TESTS / 'without_torch'}"
  return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path}


def of(number):
  """Numbers of all that process `number` has started, and what those have."""
  return [child.pid for child in psutil.Process(number).children(recursive=True)]


def wait_until_gone(numbers):
  """Waits for the end of processes; AssertionError if one outlives its parent."""
  assert numbers, "no process was started"
  deadline = time.monotonic() + 60
  while left := list(filter(_runs, numbers)):
    assert time.monotonic() < deadline, f"still there: {left}"
    time.sleep(0.05)


def _runs(number):
  try:
    return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False
