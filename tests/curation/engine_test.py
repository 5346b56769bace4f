"""Pipelines: a failing task, or a killed process, ends all others in one line."""

import contextlib
import errno
import functools
import os
import pathlib
import signal
import threading
import time

import psutil
import pytest

from dinojax import errors
from dinojax.curation import engine, failures


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


def hang(task, *, folder):
  def read():
    yield 0
    (folder / "hangs").touch()
    threading.Event().wait()

  for _ in failures.watched(read(), minutes=0.005, where="folder:/mnt"):
    assert not (folder / "hangs").exists()


def fail(task, *, error):
  raise error


def run(function, tmp_path, *, processes):
  options = engine.parse_options([f"--direct_num_workers={processes}"], [])
  if not processes:
    options = engine.in_this_process(options)
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
  with pytest.raises(errors.TemporaryError, match="a worker process was killed"):
    run(note_and_wait, tmp_path, processes=1)


def test_a_read_that_never_returns_ends_the_run_and_is_worth_a_restart(tmp_path):
  message = (
    r"^folder:/mnt: no image has come for 0.005 minutes \(--hang_minutes\); when"
  )
  with pytest.raises(errors.TemporaryError, match=message):
    run(hang, tmp_path, processes=0)
  assert (tmp_path / "hangs").exists()


def test_work_between_two_reads_is_no_hang():
  found = []
  for item in failures.watched(range(2), minutes=0.001, where="x"):
    time.sleep(0.15)  # 0.06 would be a hang, which would end this process
    found.append(item)
  assert found == [0, 1]


@pytest.mark.parametrize(
  ("error", "status", "here"),
  [
    (errors.UserError("bad"), 1, True),
    (errors.TemporaryError("out of reach"), 75, True),
    (errors.TemporaryError("out of reach"), 75, False),
    (OSError(errno.EIO, "Input/output error"), 75, True),
    (TypeError("a bug"), 1, True),
  ],
)
def test_an_error_of_a_task_keeps_its_status(error, status, here, monkeypatch):
  if not here:  # as on other machines, whose errors come as text
    monkeypatch.setattr(engine, "LOCAL", ())
  options = engine.in_this_process(engine.parse_options([], []))
  with pytest.raises(Exception) as raised:
    engine.run_tasks(
      functools.partial(fail, error=error),
      [0],
      options=options,
      label="x",
      count_done=lambda: 0,
    )
  found = raised.value
  user = isinstance(found, errors.UserError)
  assert (found.status if user else errors.unforeseen_status(found)) == status


def test_options_that_nobody_knows_are_refused():
  with pytest.raises(errors.UserError, match="--min_sid is an option neither of"):
    engine.parse_options(["--min_sid=3"], [])
  assert "--runner=FlinkRunner" in engine.parse_options(["--runner=FlinkRunner"], [])
