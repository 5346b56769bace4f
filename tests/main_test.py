"""The command line, as a user runs it: whole runs in processes of their own."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import children
import pytest

from dinojax import errors, main, resolutions
from experiments import quickstart

pytestmark = pytest.mark.process
ROOT = pathlib.Path(__file__).parent.parent
SMALL = (
  *(
    "total_steps=40",
    "log_every=1",
    "workers=0",
    "checkpoint.every=2",
    "alarm_window=3",
  ),
  *("data.batch_size=16", "group_size=2", "augment.num_local=2"),
  *("backbone.width=16", "backbone.depth=1", "backbone.heads=2"),
  *("heads.dino.hidden=16", "heads.dino.bottleneck=8", "heads.dino.prototypes=32"),
  *("schedules.learning_rate.warmup_steps=2", "knn.every=0"),
)
SELDOM = "checkpoint.every=40"  # of runs that nothing interrupts: each takes time
RATES = {
  "time",
  *("images_per_second", "data_wait_share"),
  *("step_images_per_second", "input_images_per_second"),
}


def start(workdir, *overrides, devices=1, flags=(), config="experiments/quickstart.py"):
  """Starts the quickstart, shrunk, in a process; or another config made of it."""
  settings = [f"workdir={workdir}", *SMALL, *overrides]
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "dinojax.main", f"--config={config}"),
      *(f"--config.{setting}" for setting in settings),
      *flags,
    ],
    cwd=ROOT,
    env=children.environment(devices),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process, code=0):
  """Waits for the end of a process; returns what it printed."""
  output = process.communicate(timeout=300)[0]
  assert process.returncode == code, output
  return output


def logged(workdir, *, after=0):
  """Scalars by step, without rates, which depend on the hour."""
  lines = pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()
  entries = [json.loads(line) for line in lines]
  return [
    {k: v for k, v in entry.items() if k not in RATES}
    for entry in entries
    if entry["step"] > after
  ]


def events(workdir):
  """What has happened to a run."""
  lines = pathlib.Path(workdir, "events.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
  """Workdir of an uninterrupted run."""
  workdir = tmp_path_factory.mktemp("whole")
  output = finish(start(workdir, SELDOM))
  assert output.splitlines()[-1].endswith(f"open {workdir}/report.html in a browser")
  return workdir


def test_a_run_logs_every_loss_schedule_and_norm_and_leaves_its_config(whole_run):
  steps = logged(whole_run)
  assert [entry["step"] for entry in steps] == list(range(1, 41))
  wanted = "loss loss_dino loss_ibot loss_koleo teacher_entropy learning_rate"
  wanted += " weight_decay teacher_momentum teacher_temp local_weight gram_weight"
  wanted += " grad_norm_backbone"
  assert {*wanted.split(), "step", "grad_norm_dino_head"} == set(steps[0])
  config = json.loads((whole_run / "config.json").read_text())
  assert config["backbone"]["width"] == 16
  assert list((whole_run / "tensorboard").iterdir())
  kinds = [event["event"] for event in events(whole_run)]
  kinds = [kind for kind in kinds if kind not in ("input", "alarm")]
  assert kinds == ["start", "checkpoint", "done"]
  page = (whole_run / "report.html").read_text()
  assert "complete, step 40 of 40" in page


def test_after_kill_9_the_same_command_repeats_the_run_bit_by_bit(whole_run, tmp_path):
  killed = tmp_path / "killed"
  # The restart runs the programs that the first start has compiled and kept.
  kept = (f"compilation_cache={tmp_path / 'programs'}",)
  process = start(killed, *kept)
  wait_for(killed / "checkpoints" / "4", process)
  process.kill()
  process.communicate()
  assert len(logged(killed)) < 40
  programs = sorted(tmp_path.glob("programs/compiled/*/jit_train_step-*"))
  times = [path.stat().st_mtime_ns for path in programs]
  output = finish(start(killed, SELDOM, *kept))
  assert programs and times < [path.stat().st_mtime_ns for path in programs]
  assert programs == sorted(tmp_path.glob("programs/compiled/*/jit_train_step-*"))
  assert int(re.search(r"step (\d+) of 40", output)[1]) >= 4
  assert logged(killed) == logged(whole_run)


def test_a_high_resolution_stage_continues_a_run_and_resumes_bit_by_bit(
  whole_run, tmp_path
):
  rows = (
    dict(share=0.5, global_size=16, local_size=12, gram_size=24),
    dict(share=0.5, global_size=24, local_size=8, gram_size=0),
  )
  stage = (f"init.run={whole_run}", f"gram.teacher={whole_run}", "gram.crop_size=24")
  stage += ("schedules.gram_weight.final=1.5", "schedules.gram_weight.start=1.5")
  stage += (f"resolutions={rows}", "total_steps=8", "checkpoint.every=4")
  first, again = tmp_path / "first", tmp_path / "again"
  output = finish(start(first, *stage))
  assert f"student and teacher start from {whole_run}\n" in output
  assert "0.5 of the steps: crops of 16 and 12, Gram of 24 pixels\n" in output
  shutil.copytree(first, again)
  shutil.rmtree(again / "checkpoints" / "8")
  assert "step 4 of 8" in finish(start(again, *stage))
  # Steps 5 to 8 have both rows, as the first four do.
  assert len({resolutions.row_of(k, seed=0, shares=[0.5, 0.5]) for k in (4, 5)}) == 2
  assert logged(again) == logged(first)
  records = [path / "checkpoints/8/record/metadata" for path in (first, again)]
  there, here = (json.loads(path.read_text())["checksums"] for path in records)
  assert there and there == here


def wait_for(path, process):
  """Returns when a path exists."""
  for _ in range(15_000):
    if path.exists():
      return
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.02)
  raise AssertionError(f"{path} did not appear")


@contextlib.contextmanager
def stopped(numbers):
  """Stops processes, and has those that are left continue."""
  for number in numbers:
    os.kill(number, signal.SIGSTOP)
  yield
  for number in numbers:
    with contextlib.suppress(ProcessLookupError):
      os.kill(number, signal.SIGCONT)


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path):
  process = start(tmp_path, "total_steps=6000", "checkpoint.every=1000")
  wait_for(tmp_path / "metrics.jsonl", process)
  while not (tmp_path / "metrics.jsonl").read_text().count("\n") >= 2:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  output = finish(process, code=128 + signal.SIGTERM)
  saved = int(re.search(r"interrupted; step (\d+) is saved in", output)[1])
  assert (tmp_path / "checkpoints" / str(saved)).is_dir()
  again = ("total_steps=6000", "checkpoint.every=1000", "workers=1")
  process = start(tmp_path, *again)
  deadline = time.time() + 200
  while logged(tmp_path)[-1]["step"] <= saved + 2 and time.time() < deadline:
    time.sleep(0.1)
  with stopped(children.of(process.pid)):  # no more data come
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
  output = finish(process, code=128 + signal.SIGINT)
  assert f"step {saved} of" in output
  saved = int(re.search(r"interrupted; step (\d+) is saved in", output)[1])
  assert (tmp_path / "checkpoints" / str(saved)).is_dir()
  steps = [entry["step"] for entry in logged(tmp_path)]
  assert steps == list(range(1, len(steps) + 1))
  ends = [x for x in events(tmp_path) if x["event"] in ("start", "interrupted")]
  assert [x.get("signal") for x in ends] == [None, "SIGTERM", None, "SIGINT"]


def start_pair(workdir, *overrides, own=((), ())):
  """Starts two processes of two devices that train together."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  together = (f"--coordinator={address}", "--num_processes=2")
  return [
    start(
      *(workdir, *overrides, *own[i]),
      devices=2,
      flags=(*together, f"--process_id={i}"),
    )
    for i in range(2)
  ]


def wait_for_step(step, workdir, process):
  """Returns when a step is logged."""
  wait_for(workdir / "metrics.jsonl", process)
  while logged(workdir)[-1:] == [] or logged(workdir)[-1]["step"] < step:
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.05)


def test_a_run_goes_on_on_other_processes_after_sigterm_and_sigkill_of_one(
  whole_run, tmp_path
):
  moved = tmp_path
  pair = start_pair(moved, "checkpoint.every=100", "pictures.every=2")
  wait_for_step(2, moved, pair[0])
  pair[1].send_signal(signal.SIGTERM)
  outputs = [finish(process, code=128 + signal.SIGTERM) for process in pair]
  saved = int(re.search(r"interrupted; step (\d+) is saved in", outputs[0])[1])
  assert os.listdir(moved / "checkpoints") == [str(saved)]
  assert "dinojax: process 1 of 2, by --coordinator" in outputs[1]
  assert "no pictures" not in outputs[0]
  (path,) = (moved / "tensorboard").iterdir()
  for name in ("crops", "components", "neighbours", "map_pca", "prototypes_patches"):
    assert f"pictures/{name}".encode() in path.read_bytes()

  pair = start_pair(moved)
  wait_for(moved / "checkpoints" / str(saved // 2 * 2 + 2), pair[0])
  pair[1].kill()
  killed = time.monotonic()
  output = finish(pair[0], code=75)
  assert time.monotonic() - killed < 30
  pair[1].communicate()
  assert f"step {saved} of 40" in output
  assert "dinojax: process 1 of 2 is lost: it was killed" in output
  assert "Traceback" not in output

  output = finish(start(moved, SELDOM))
  assert int(re.search(r"step (\d+) of 40", output)[1]) > saved
  one, many = logged(whole_run), logged(moved)
  assert [entry["step"] for entry in many] == list(range(1, 41))
  for a, b in zip(one, many, strict=True):
    # Sums across processes are added up in another order than within one.
    assert b["loss"] == pytest.approx(a["loss"], rel=1e-6 if a["step"] < 3 else 1e-4)


def test_a_mistake_on_one_process_ends_all_in_one_line(tmp_path):
  pair = start_pair(tmp_path, own=((), ("data.batch_size=15",)))
  for process, told in zip(pair, ("process 1 of 2 ended: ", ""), strict=True):
    output = finish(process, code=1)
    assert f"dinojax: {told}config.data.batch_size=15 must be a multiple" in output
    assert "Traceback" not in output


def test_a_run_that_hangs_shows_where_and_ends_to_be_started_again(tmp_path):
  settings = ("total_steps=6000", "checkpoint.every=1000", "workers=1")
  process = start(tmp_path, *settings, "hang_minutes=0.1")
  wait_for_step(2, tmp_path, process)
  workers = children.of(process.pid)
  with stopped(workers):
    process.wait(timeout=60)
  output = finish(process, code=75)
  assert "prefetch.py" in output
  assert "dinojax: no progress for 0.1 minutes (config.hang_minutes)" in output
  children.wait_until_gone(workers)


def test_a_workdir_of_another_config_is_refused_by_name(whole_run):
  output = finish(start(whole_run, "losses.koleo_weight=0.5"), code=1)
  assert "config.losses.koleo_weight: 0.1 in the workdir, 0.5 now" in output
  assert "Traceback" not in output


def test_a_finished_run_says_so_and_evaluates_its_teacher_again(whole_run):
  # Fields that change no result of training may differ from the run's.
  output = finish(start(whole_run, "accumulation=2", "knn.every=2", "knn.ks=(5,)"))
  assert "complete at step 40; nothing to train" in output
  assert "the first step" not in output
  for row in ("trained teacher", "same network, untrained", "raw pixels"):
    assert re.search(rf"{row} +\d+\.\d% +\d+\.\d%", output), output
  newest = [event for event in events(whole_run) if event["event"] == "start"][-1]
  assert newest["evaluation_images"] == {"train": 1_347, "test": 450}


def test_a_finished_run_is_extended_on_request(whole_run, tmp_path):
  longer = tmp_path / "longer"
  shutil.copytree(whole_run, longer)
  output = finish(start(longer, "total_steps=42"), code=1)
  assert "config.total_steps: 40 in the workdir, 42 now" in output
  assert "add --config.extend=True" in output
  output = finish(start(longer, "total_steps=42", "extend=True"))
  assert "extended from 40 to 42 steps; at step 40: learning_rate" in output
  assert [entry["step"] for entry in logged(longer)] == list(range(1, 43))


def test_a_loss_that_is_not_finite_ends_the_run_before_the_next_save(tmp_path):
  process = start(tmp_path, "schedules.learning_rate.peak=1e38", "checkpoint.every=3")
  output = finish(process, code=1)
  assert re.search(r"step \d: \w+ is (nan|inf|-inf)", output), output
  assert "Traceback" not in output


def test_images_that_evaluation_cannot_use_end_the_run_after_a_save(tmp_path):
  labelled = tmp_path / "labelled"
  for i in range(6):
    path = labelled / "ab"[i % 2] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no image")
  fields = [f"knn.{name}=folder:{labelled}" for name in ("train", "test")]
  process = start(tmp_path / "run", *fields, "knn.every=2", "knn.ks=(5,)")
  output = finish(process, code=1)
  assert "knn.ks asks for 5 neighbours, and config.knn.train has 0 labelled" in output
  assert "Traceback" not in output
  assert [x.name for x in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]


def test_a_misspelt_field_is_one_line_without_a_traceback(tmp_path):
  output = finish(start(tmp_path, "backbone.dept=3"), code=1)
  assert "no such field: dept; did you mean depth?" in output
  assert "Traceback" not in output
  assert "the first step" not in output


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("data.batch_size", 15, "config.data.batch_size=15 must be a multiple of"),
    ("augment.local.area", (0.5, 0.1), "area=(0.5, 0.1) must rise within (0, 1]"),
    ("data.sources", ("folder:/no/such",), 'config.data.sources[0]="folder:/no/such"'),
    ("knn.train", "folder:/no/such", 'config.knn.train="folder:/no/such"'),
    ("workdir", "/proc/no/such", "config.workdir='/proc/no/such' is not writable"),
  ],
)
def test_a_user_error_ends_a_run_before_it_writes(tmp_path, field, value, message):
  config = quickstart.get_config()
  with config.unlocked():
    config.update(workdir=str(tmp_path / "run"), group_size=2)
    config.update_from_flattened_dict({field: value})
  with pytest.raises(errors.UserError) as caught:
    main.train(config)
  assert message in str(caught.value)
  assert not (tmp_path / "run" / "checkpoints").exists()


def test_help_names_the_config_flag():
  command = [sys.executable, "-m", "dinojax.main", "--help"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, "")
  output = done.stdout
  assert "--config: Experiment file to run." in output
  assert "python -m dinojax.main --config=experiments/quickstart.py" in output
