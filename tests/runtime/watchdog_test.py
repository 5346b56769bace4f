"""A run that gets nowhere ends by itself, and shows where it was."""

import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process
ROOT = pathlib.Path(__file__).parents[2]
PROCESS = """
import ctypes, sys, time
from dinojax.runtime import watchdog

watchdog.FIRST_STEP, watchdog.LAST_RESORT = 1.5, 1

def fetch_from_nowhere(sleep):
  sleep(60)

watch = watchdog.Watchdog(float(sys.argv[2]))
exec(sys.argv[1])
"""


def run(program, minutes=0.01):
  """Status and output of a process that may be as long as 0.6 s without progress."""
  result = subprocess.run(
    [sys.executable, "-c", PROCESS, program, str(minutes)],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  return result.returncode, result.stderr


def test_without_progress_a_process_shows_its_stacks_and_ends_to_be_started_again():
  status, output = run("watch.step_done(); fetch_from_nowhere(time.sleep)")
  assert status == 75
  assert "in fetch_from_nowhere" in output
  line = output.splitlines()[-1]
  assert line.startswith("dinojax: no progress for 0.01 minutes (config.hang_minutes)")


def test_a_thread_that_never_lets_others_run_is_ended_by_the_kernel():
  # A PyDLL keeps Python's lock while its functions run.
  status, output = run(
    "watch.step_done(); fetch_from_nowhere(ctypes.PyDLL(None).sleep)"
  )
  assert status == -14
  assert "in fetch_from_nowhere" in output


def test_progress_and_the_first_step_and_a_closed_watch_take_their_time():
  status, output = run(
    "time.sleep(1); watch.step_done()\n"  # longer than later steps may
    "for _ in range(4): time.sleep(0.3); watch.progress()\n"
    "watch.close(); time.sleep(2.5)"
  )
  assert (status, output) == (0, "")


def test_0_minutes_are_no_limit():
  status, output = run("watch.step_done(); time.sleep(2)", minutes=0)
  assert (status, output) == (0, "")
