"""Pipelines: a failing task, or a killed process, ends all others in one line."""

import contextlib
import functools
import os
import pathlib
import signal
import threading
import time

import psutil
import pytest

from dinojax import errors
from dinojax.curation import engine


@pytest.fixture(autouse=True)
def found_by_workers(monkeypatch):
  here = pathlib.Path(__file__)
  paths = [str(here.parents[2]), str(here.parent), os.environ.get("PYTHONPATH", "")]
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
  yield
  deadline = time.monotonic() + 10  # what was killed takes a moment to be gone
  while left := workers():
    assert time.monotonic() < deadline, left
    time.sleep(0.05)


def workers():
  """Processes of an engine; others are of pytest and multiprocessing."""
  found = []
  for process in psutil.Process().children(recursive=True):
    with contextlib.suppress(psutil.NoSuchProcess):  # gone meanwhile, or a zombie
      found += [process] if "curation.worker" in " ".join(process.cmdline()) else []
  return found


def fail_once_all_are_at_work(task, *, folder):
  (folder / f"{os.getpid()}").touch()
  while len(list(folder.iterdir())) < 2:
    time.sleep(0.05)
  if os.getpid() == min(int(path.name) for path in folder.iterdir()):
    raise errors.UserError("the disk is full")
  time.sleep(600)


def note_and_wait(task, *, folder):
  (folder / f"{os.getpid()}").touch()
  time.sleep(600)


def run(function, tmp_path, *, processes):
  options = engine.parse_options([f"--direct_num_workers={processes}"], [])
  function = functools.partial(function, folder=tmp_path)
  engine.run_tasks(
    function, list(range(20)), options=options, label="x", count_done=lambda: 0
  )


@pytest.mark.process
def test_the_first_failure_ends_all_processes_at_once(tmp_path):
  begun = time.monotonic()
  with pytest.raises(errors.UserError, match=r"^the disk is full$"):
    run(fail_once_all_are_at_work, tmp_path, processes=2)
  assert time.monotonic() - begun < 300  # the other one would sleep for 600


@pytest.mark.process
def test_a_killed_process_ends_the_run_with_a_message(tmp_path):
  def kill():
    while not (found := list(tmp_path.iterdir())):
      time.sleep(0.05)
    os.kill(int(found[0].name), signal.SIGKILL)

  threading.Thread(target=kill, daemon=True).start()
  with pytest.raises(errors.UserError, match="a worker process was killed"):
    run(note_and_wait, tmp_path, processes=1)


def test_options_that_nobody_knows_are_refused():
  with pytest.raises(errors.UserError, match="--min_sid is an option neither of"):
    engine.parse_options(["--min_sid=3"], [])
  assert "--runner=FlinkRunner" in engine.parse_options(["--runner=FlinkRunner"], [])
