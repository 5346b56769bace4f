"""Worker processes: silent on Ctrl-C, and gone when the run is, however it ends."""

import contextlib
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import resource_tracker, spawn

import children
import grain
import numpy as np
import pytest
from absl import flags

from dinojax import errors
from dinojax.data import prefetch

ROOT = pathlib.Path(__file__).parents[2]

RUN = """
import contextlib, multiprocessing, signal, sys, time
import grain
import numpy as np
from absl import flags
from dinojax.data import prefetch

def element(i):
  return {"i": np.full(1000, i)}

def main():
  flags.FLAGS.mark_as_parsed()
  signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
  dataset = grain.MapDataset.range(10**9).map(element)
  count = int(sys.argv[2])
  with contextlib.closing(prefetch.Batches(dataset, count)) as batches:
    try:
      if sys.argv[1] == "running":
        next(batches)
        time.sleep(1)  # Buffers are full: a worker killed at work leaks its block.
      workers = multiprocessing.active_children()
      while len(workers) < count:
        workers = multiprocessing.active_children()
      print(*(worker.pid for worker in workers), flush=True)
      time.sleep(60)
    except KeyboardInterrupt:
      for i in range(4):
        print(next(batches)["i"][0])
  print("closed")

if __name__ == "__main__":
  main()
"""


@pytest.fixture
def run(tmp_path):
  """Starts RUN in a process group of its own, as a terminal would."""
  (tmp_path / "run.py").write_text(RUN)
  started = []

  def start(state, workers):
    process = subprocess.Popen(
      [sys.executable, "run.py", state, str(workers)],
      cwd=tmp_path,
      env=os.environ | {"PYTHONPATH": str(ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    started.append(process)
    return process, [int(pid) for pid in process.stdout.readline().split()]

  yield start
  for process in started:
    process.kill()
    try:
      process.communicate(timeout=60)  # Until all that share its output have ended.
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      raise


@pytest.mark.process
@pytest.mark.parametrize(("state", "count"), [("starting", 1), ("running", 1)])
def test_ctrl_c_leaves_the_workers_at_work_and_silent(run, state, count):
  process, workers = run(state, count)
  os.killpg(process.pid, signal.SIGINT)
  printed, complaints = process.communicate(timeout=60)
  first = 1 if state == "running" else 0
  expected = [*map(str, range(first, first + 4)), "closed"]
  assert (printed.split(), complaints) == (expected, "")
  children.wait_until_gone(workers)


@pytest.mark.process
def test_workers_end_when_the_run_is_killed(run):
  process, workers = run("running", 1)
  process.kill()
  children.wait_until_gone(workers)


def element(i):
  return {"i": np.array([i])}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_and_end_and_the_rate_is_what_workers_can_make(workers):
  flags.FLAGS.mark_as_parsed()
  batches = prefetch.Batches(grain.MapDataset.range(9).map(make_slowly), workers)
  assert np.isnan(batches.rate())
  seen, start = [], time.perf_counter()
  for _ in range(4):
    seen.append(int(next(batches)["i"][0]))
    time.sleep(0.1)
  taken = 4 / (time.perf_counter() - start)
  assert taken < batches.rate() <= max(workers, 1) / 0.02
  seen += [int(batch["i"][0]) for batch in batches]
  assert seen == list(range(9))
  assert not workers_of_this_process()
  assert list(batches) == []
  batches.close()


def make_slowly(i):
  time.sleep(0.02)
  return {"i": np.full(1, i)}


def workers_of_this_process():
  return [x for x in multiprocessing.active_children() if "grain" in x.name]


@pytest.mark.process
def test_a_killed_worker_ends_the_run_in_seconds_with_one_line_and_no_orphan():
  number = signal.SIGBUS  # as when shared memory is full
  flags.FLAGS.mark_as_parsed()
  dataset = grain.MapDataset.range(10**9).map(element)
  with contextlib.closing(prefetch.Batches(dataset, workers=2)) as batches:
    seen = [int(next(batches)["i"][0]) for _ in range(2)]
    time.sleep(0.5)  # Buffers are full: a worker killed at work leaks its block.
    os.kill(workers_of_this_process()[0].pid, number)
    start = time.monotonic()
    with pytest.raises(errors.TemporaryError) as raised:
      while True:
        seen.append(int(next(batches)["i"][0]))
  assert time.monotonic() - start < 20
  assert f"worker was ended by {number.name}: " in str(raised.value)
  assert "/dev/shm" in str(raised.value) and "\n" not in str(raised.value)
  message = str(raised.value.__cause__).replace(f"-{number.value}", "-9")
  assert "memory may have run out" in str(
    prefetch._killed_worker(RuntimeError(message))
  )
  assert seen == list(range(len(seen)))  # none was left out before the end
  assert not workers_of_this_process()


class Large:
  """A function of a megabyte, as a folder with many names is."""

  def __init__(self):
    self.names = [f"{i:020}" for i in range(50_000)]

  def __call__(self, i):
    return {"i": np.array([int(self.names[i])])}


def test_a_worker_that_dies_before_it_has_read_what_it_is_started_with_hangs_nothing(
  tmp_path,
):
  flags.FLAGS.mark_as_parsed()
  resource_tracker.ensure_running()  # by Python itself
  dying = tmp_path / "python"
  dying.write_text("#!/bin/sh\nkill -9 $$\n")
  dying.chmod(0o755)
  said = []

  def read():
    dataset = grain.MapDataset.range(50_000).map(Large())  # 64 KiB would fit a pipe
    with contextlib.closing(prefetch.Batches(dataset, workers=1)) as batches:
      try:
        next(batches)
      except errors.UserError as error:
        said.append(str(error))

  thread = threading.Thread(target=read, daemon=True)
  before = spawn.get_executable()
  spawn.set_executable(str(dying))
  try:
    thread.start()
    thread.join(30)
  finally:
    spawn.set_executable(before)
  assert said and "SIGKILL" in said[0]


OUT_OF_REACH = """
import contextlib, sys
import grain
import numpy as np
from absl import flags
from dinojax import errors
from dinojax.data import prefetch

def element(i):
  if i == 2:
    raise errors.TemporaryError("out of reach")
  return {"i": np.full(1000, i)}

if __name__ == "__main__":
  flags.FLAGS.mark_as_parsed()
  dataset = grain.MapDataset.range(9).map(element)
  try:
    with contextlib.closing(prefetch.Batches(dataset, workers=1)) as batches:
      for batch in batches:
        print(batch["i"][0])
  except errors.UserError as error:
    sys.exit(f"{error.status}: {error}")
"""


@pytest.mark.process
def test_an_error_of_a_worker_is_one_line_and_frees_the_shared_memory(tmp_path):
  (tmp_path / "run.py").write_text(OUT_OF_REACH)
  done = subprocess.run(
    [sys.executable, "run.py"],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.stdout.split() == ["0", "1"]
  assert done.stderr == "75: out of reach\n"
