"""Training on Ctrl-C and SIGTERM: it waits for no data, and twice is at once."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Data that never come, in a callback of Python's garbage collector: what is raised
# there is dropped, and has to be raised again.
PROCESS = """
import gc, time
from dinojax.runtime import interrupts, signals

signals.end_in_order()
stop = interrupts.Interrupts()

def wait(phase, _):
  if phase == "start":
    gc.callbacks.clear()
    print("waiting", flush=True)
    time.sleep(60)

def batches():
  yield "a batch"
  gc.callbacks.append(wait)
  gc.collect()
  time.sleep(60)

feed = batches()
print(stop.next(feed), stop.ends(1), flush=True)
print(stop.next(feed), stop.ends(1), stop.exit_code(), flush=True)
time.sleep(60)
"""


@pytest.mark.process
def test_a_signal_ends_the_wait_for_a_batch_and_a_second_one_the_process():
  process = subprocess.Popen(
    [sys.executable, "-c", PROCESS],
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  lines = [process.stdout.readline() for _ in range(2)]
  assert lines == ["a batch False\n", "waiting\n"]
  process.send_signal(signal.SIGTERM)
  assert process.stdout.readline() == "None True 143\n"
  process.send_signal(signal.SIGINT)
  _, said = process.communicate(timeout=60)
  assert process.returncode == 130
  assert said.split("\n\n") == [
    "\nsaving after this step; once more ends at once, unsaved",
    "ended; steps since the last checkpoint are lost\n",
  ]
