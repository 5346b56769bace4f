"""Several processes on one machine: how they start, what is seen, how they end."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import children
import pytest

pytestmark = pytest.mark.process
ROOT = pathlib.Path(__file__).parent.parent.parent


def start(*flags, environment=None, cwd=ROOT, stderr=subprocess.STDOUT):
  """Starts local.py in a process."""
  return subprocess.Popen(
    [sys.executable, ROOT / "launch/local.py", *flags],
    cwd=cwd,
    env={**os.environ, "PYTHONPATH": str(ROOT / "tests/launch"), **(environment or {})},
    stdout=subprocess.PIPE,
    stderr=stderr,
    text=True,
  )


def finish(process, code):
  """Waits for the end of local.py; returns what it printed."""
  output = process.communicate(timeout=120)[0]
  assert process.returncode == code, output
  return output


def child(*flags):
  """Starts two processes of child.py."""
  return start("--processes=2", "--module=child", *flags)


def pids(text, count=2):
  """The numbers of all processes, which child.py prints first."""
  numbers = [
    int(number) for number in re.findall(r"^\[\d\] pid (\d+)", text, re.MULTILINE)
  ]
  assert len(numbers) == count
  return numbers


def started(process):
  """The same, of processes that have just said so."""
  return pids("".join(process.stdout.readline() for _ in range(2)))


def test_lines_and_returned_carriages_have_the_process_in_front_and_all_end_well():
  output = finish(child("--devices=3", r"--say=a\r50%\r100%\nb"), code=0)
  for number in "01":
    own = [line for line in output.splitlines() if line.startswith(f"[{number}] ")]
    assert own[0].endswith("of 2, devices 3")
    assert own[1:] == [f"[{number}] {said}" for said in ("a", "50%", "100%", "b")]


def test_results_and_notes_of_processes_stay_apart(tmp_path):
  flags = ("--processes=2", "--module=child", r"--say=result\n", r"--note=note\n")
  process = start(*flags, cwd=tmp_path, stderr=subprocess.PIPE)
  output, notes = process.communicate(timeout=60)
  assert sorted(notes.splitlines()) == ["[0] note", "[1] note"]
  assert sorted(re.findall(r"\[\d\] result", output)) == ["[0] result", "[1] result"]
  assert "note" not in output


@pytest.mark.parametrize(
  ("visible", "first", "second"), [("", "0,1", "2,3"), ("7,5,3,1", "7,5", "3,1")]
)
def test_gpus_are_dealt_out_in_order_of_those_that_are_visible(visible, first, second):
  environment = {"CUDA_VISIBLE_DEVICES": visible}
  flags = ("--processes=2", "--devices=2", "--gpus", "--module=child")
  output = finish(start(*flags, environment=environment), code=0)
  assert re.search(rf"^\[0\] .* devices {first}$", output, re.MULTILINE)
  assert re.search(rf"^\[1\] .* devices {second}$", output, re.MULTILINE)


def test_one_process_is_a_run_like_any_other():
  output = finish(start("--processes=1", "--devices=8", "--module=child"), code=0)
  assert output.endswith("of None, devices 8\n")


def test_one_that_fails_ends_the_others_and_its_status_and_words_come_last():
  # What a process has started holds its output, and is to go with it.
  flags = ("--only=1", r"--say=the cause\n", "--status=3", "--leave")
  output = finish(child(*flags), code=3)
  assert output.index("[1] the cause") < output.index("process 1 ended with status 3")
  assert output.splitlines()[-1] == "dinojax: process 1 of 2 ended with status 3"
  children.wait_until_gone(pids(output, count=4))


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_is_passed_on_to_all(number, code):
  process = child("--only=7")
  numbers = started(process)
  process.send_signal(number)
  assert f"ended on {number.name}" in finish(process, code)
  children.wait_until_gone(numbers)


def test_a_second_signal_kills():
  process = child("--only=7", "--stubborn")
  numbers = started(process)
  process.send_signal(signal.SIGTERM)
  answers = [process.stdout.readline() for _ in range(2)]
  assert sorted(answers) == ["[0] no\n", "[1] no\n"]
  process.send_signal(signal.SIGTERM)
  assert "ended at once, unsaved, by a second signal" in finish(process, code=137)
  children.wait_until_gone(numbers)


def test_no_process_outlives_a_killed_launcher():
  process = child("--only=7")
  numbers = started(process)
  process.kill()
  children.wait_until_gone(numbers)
  process.communicate()


def test_nothing_goes_on_when_nobody_reads_what_is_said():
  mark = f"--say={os.urandom(8).hex()}"
  process = child("--only=7", mark)
  process.stdout.close()
  assert process.wait(timeout=20) == -signal.SIGPIPE
  for _ in range(200):
    if subprocess.run(["pgrep", "--full", "--", mark], check=False).returncode == 1:
      return
    time.sleep(0.05)
  raise AssertionError("still there")


@pytest.mark.parametrize(
  ("flag", "said"),
  [
    ("--processes=0", "--processes=0 must be at least 1"),
    ("--devices=x", "argument --devices: invalid int value: 'x'; see --help"),
  ],
)
def test_a_mistake_is_told_in_one_line(flag, said):
  assert finish(start(flag), code=1) == f"dinojax: {said}\n"


@pytest.mark.parametrize("flag", ["-h", "--help", "--helpshort", "--helpfull"])
def test_help_starts_nothing_and_ends_with_0(flag):
  output = finish(start(flag, "--module=child"), code=0)
  assert "--processes" in output
  assert "pid" not in output


def test_an_error_of_several_processes_is_printed_once():
  note = r"--note=dinojax: config.foo=3 must be 4\n"
  lines = finish(child(note, "--status=1"), code=1).splitlines()
  lines = [line for line in lines if " pid " not in line]
  [said] = [line for line in lines if "must be 4" in line]
  assert lines[-1] == f"dinojax: the run ended with status 1; {said[:3]} says why above"
  assert len(lines) == 2


def test_an_error_of_one_process_is_not_repeated_by_those_that_hear_of_it():
  # As both print it that have met: the one that has failed, and the other one.
  note = r"--note=dinojax: process 1 of 2 ended: config.foo=3 must be 4\n"
  output = finish(child(note, "--status=1"), code=1)
  assert output.count("config.foo=3 must be 4") == 1


def test_what_each_process_says_of_itself_is_printed():
  output = finish(child(r"--note=dinojax: process PROCESS waits\n" * 2), code=0)
  assert "[0] dinojax: process 0 waits" in output
  assert "[1] dinojax: process 1 waits" in output


@pytest.mark.parametrize(
  ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_before_anything_is_started_ends_it(number, status):
  process = subprocess.Popen(
    [sys.executable, "-X", "importtime", "launch/local.py", "--module=child"],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT / "tests/launch")},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  for line in process.stdout:
    if line.rstrip().endswith(" launch.children"):
      break
  process.send_signal(number)
  finish(process, status)


def test_processes_see_the_devices_of_all_from_any_folder(tmp_path):
  # As far as it goes before the compiler starts: a batch that does not fit. That a run
  # survives SIGKILL and SIGTERM is main_test.py's.
  output = finish(
    start(
      *("--processes=2", "--devices=3", f"--config={ROOT}/experiments/quickstart.py"),
      *("--config.data.batch_size=16", "--config.group_size=2"),
      environment={"PYTHONPATH": ""},
      cwd=tmp_path,
    ),
    code=1,
  )
  assert output.count("config.group_size=2 times 6 devices") == 1
  assert re.search(r"the run ended with status 1; \[[01]\] says why", output)
