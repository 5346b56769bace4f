"""The command line, as a user runs it: whole runs in processes of their own.

Runs that need neither a signal nor other processes share one: see train_session.py.
"""

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
import jax
import numpy as np
import pytest
import train_session
from absl import flags

from dinojax import errors, main, resolutions, sharding
from dinojax.weights import formats, model
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
  # hidden x hidden weights are enough to be sharded: sharding.SMALLEST_SHARDED.
  *("heads.dino.hidden=256", "heads.dino.bottleneck=8", "heads.dino.prototypes=32"),
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


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
  """The setting of a folder for compiled programs, which all runs share."""
  return f"compilation_cache={tmp_path_factory.mktemp('programs')}"


@pytest.fixture(scope="module")
def train(programs):
  """Trains the quickstart, shrunk, to the status wanted; returns what it printed."""
  session = train_session.Session()

  def train(workdir, *overrides, status=0):
    settings = f"workdir={workdir}", programs, *SMALL, *overrides
    ended = session.train(*settings)
    assert ended.status == status, ended.output
    assert "Traceback" not in ended.output
    return ended.output

  yield train
  session.close()


def finish(process, code=0):
  """Waits for the end of a process; returns what it printed."""
  output = process.communicate(timeout=300)[0]
  assert process.returncode == code, output
  return output


def logged(workdir):
  """Scalars by step, without rates, which depend on the hour."""
  lines = pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()
  entries = [json.loads(line) for line in lines]
  return [{k: v for k, v in entry.items() if k not in RATES} for entry in entries]


def events(workdir):
  """What has happened to a run."""
  lines = pathlib.Path(workdir, "events.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, train):
  """Workdir of an uninterrupted run."""
  workdir = tmp_path_factory.mktemp("whole")
  output = train(workdir, SELDOM)
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


def wait_for(path, process):
  """Returns when a path exists."""
  for _ in range(15_000):
    if path.exists():
      return
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.02)
  raise AssertionError(f"{path} did not appear")


def wait_for_steps(workdir, process, since, steps=2):
  """Returns when a process has logged that many since its start, by time.time()."""
  wait_for(workdir / "metrics.jsonl", process)
  count = 0
  while count < steps:
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.05)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    count = sum(json.loads(line)["time"] > since for line in lines)


@contextlib.contextmanager
def stopped(numbers):
  """Stops processes, and has those that are left continue."""
  for number in numbers:
    os.kill(number, signal.SIGSTOP)
  yield
  for number in numbers:
    with contextlib.suppress(ProcessLookupError):
      os.kill(number, signal.SIGCONT)


@pytest.fixture(scope="module")
def broken(whole_run, programs, tmp_path_factory):
  """Workdir of a run that kill -9 has ended, and after its restart a hang.

  With it: how many steps each has logged, the second one's output and its workers, and
  the compiled programs, with the times before it and in it when they were read.
  """
  workdir = tmp_path_factory.mktemp("broken")
  process = start(workdir, programs)
  wait_for(workdir / "checkpoints" / "4", process)
  process.kill()
  process.communicate()
  counts, times = [len(logged(workdir))], []

  def note_programs():
    folder = pathlib.Path(programs.partition("=")[2])
    paths = folder.glob("compiled/*/jit_train_step-*")
    times.append({path: path.stat().st_mtime_ns for path in paths})

  note_programs()
  settings = SELDOM, programs, "workers=1", "hang_minutes=0.1"
  since, process = time.time(), start(workdir, *settings)
  wait_for_steps(workdir, process, since)
  note_programs()
  workers = children.of(process.pid)
  with stopped(workers):  # no more data come
    process.wait(timeout=60)
  counts.append(len(logged(workdir)))
  return workdir, counts, finish(process, code=75), workers, times


def test_after_kill_9_the_same_command_repeats_the_run_bit_by_bit(whole_run, broken):
  workdir, (before, after), output, _, (kept, now) = broken
  first = int(re.search(r"step (\d+) of 40", output)[1])
  assert 4 <= first <= before < 40 and after >= first + 2
  assert logged(workdir) == logged(whole_run)[:after]
  # The restart ran a program that an earlier start had compiled and kept.
  assert kept.keys() == now.keys()
  assert any(now[path] > kept[path] for path in kept)


def test_a_run_that_hangs_shows_where_and_ends_to_be_started_again(broken):
  _, _, output, workers, _ = broken
  assert "prefetch.py" in output
  assert "dinojax: no progress for 0.1 minutes (config.hang_minutes)" in output
  children.wait_until_gone(workers)


def test_ctrl_c_saves_though_no_data_come(broken, programs, tmp_path):
  moved = tmp_path / "moved"
  copy(broken[0], moved)
  since, process = time.time(), start(moved, SELDOM, programs, "workers=1")
  wait_for_steps(moved, process, since, steps=1)
  end_without_data(moved, process)


def end_without_data(workdir, process):
  """Presses Ctrl-C when workers bring no more data; returns what is printed."""
  with stopped(children.of(process.pid)):
    count = 0
    while count < (count := len(logged(workdir))):  # batches that are there already
      time.sleep(2)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
  output = finish(process, code=128 + signal.SIGINT)
  saved = int(re.search(r"interrupted; step (\d+) is saved in", output)[1])
  assert (workdir / "checkpoints" / str(saved)).is_dir()
  assert [entry["step"] for entry in logged(workdir)] == list(range(1, saved + 1))
  newest = [x for x in events(workdir) if x["event"] in ("start", "interrupted")][-1]
  assert newest["signal"] == "SIGINT"
  return output


# Without a run, runtime/workdir_test.py extends one, and introduction_test.py says so.
@pytest.mark.long
def test_a_finished_run_is_extended(whole_run, programs, tmp_path):
  longer = tmp_path / "longer"
  shutil.copytree(whole_run, longer)
  settings = ("total_steps=6000", "extend=True", "checkpoint.every=1000", "workers=1")
  since, process = time.time(), start(longer, programs, *settings)
  wait_for_steps(longer, process, since)
  output = end_without_data(longer, process)
  assert "extended from 40 to 6000 steps; at step 40: learning_rate" in output


def copy(workdir, to):
  """Copies a killed run without its owner file: a copy cannot show that he is gone."""
  shutil.copytree(workdir, to, ignore=shutil.ignore_patterns(".*.owner-*"))


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


def test_a_run_resumes_on_two_processes_until_sigterm_of_one_and_then_on_one(
  whole_run, broken, tmp_path, train
):
  assert sharding.SMALLEST_SHARDED <= 256**2  # the head's hidden weights
  moved = tmp_path / "moved"
  copy(broken[0], moved)
  since, pair = time.time(), start_pair(moved, SELDOM, "pictures.every=2")
  wait_for_steps(moved, pair[0], since, steps=3)  # the first two have drawn
  pair[1].send_signal(signal.SIGTERM)
  outputs = [finish(process, code=128 + signal.SIGTERM) for process in pair]
  saved = int(re.search(r"interrupted; step (\d+) is saved in", outputs[0])[1])
  assert max(map(int, os.listdir(moved / "checkpoints"))) == saved
  assert "dinojax: process 1 of 2, by --coordinator" in outputs[1]
  assert "no pictures" not in outputs[0]
  written = b"".join(path.read_bytes() for path in (moved / "tensorboard").iterdir())
  for name in ("crops", "components", "neighbours", "map_pca", "prototypes_patches"):
    assert f"pictures/{name}".encode() in written

  train(moved, SELDOM)
  one, many = logged(whole_run), logged(moved)
  assert [entry["step"] for entry in many] == list(range(1, 41))
  for a, b in zip(one, many, strict=True):
    # Sums across processes are added up in another order than within one.
    assert b["loss"] == pytest.approx(a["loss"], rel=1e-6 if a["step"] < 5 else 1e-4)


# In runtime/peers_test.py processes that compute are killed, which do not train.
@pytest.mark.long
def test_when_one_of_two_processes_is_killed_the_other_ends(broken, tmp_path):
  moved = tmp_path / "moved"
  copy(broken[0], moved)
  since, pair = time.time(), start_pair(moved, SELDOM)
  wait_for_steps(moved, pair[0], since)
  pair[1].kill()
  killed = time.monotonic()
  output = finish(pair[0], code=75)
  assert time.monotonic() - killed < 30
  pair[1].communicate()
  assert "dinojax: process 1 of 2 is lost: it was killed" in output
  assert "Traceback" not in output


def test_a_mistake_on_one_process_ends_all_in_one_line(tmp_path):
  pair = start_pair(tmp_path, own=((), ("data.batch_size=15",)))
  for process, told in zip(pair, ("process 1 of 2 ended: ", ""), strict=True):
    output = finish(process, code=1)
    assert f"dinojax: {told}config.data.batch_size=15 must be a multiple" in output
    assert "Traceback" not in output


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


def test_help_shows_the_command_and_its_flags():
  assert "python -m dinojax.main --config=experiments/quickstart.py" in main.__doc__
  shown = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(main.__name__)}
  assert shown >= {"config", "coordinator", "num_processes", "process_id"}


def test_a_high_resolution_stage_continues_a_run_and_resumes_bit_by_bit(
  whole_run, tmp_path, train
):
  rows = (
    dict(share=0.5, global_size=12, local_size=12, gram_size=18),
    dict(share=0.5, global_size=18, local_size=6, gram_size=0),
  )
  stage = (f"init.run={whole_run}", f"gram.teacher={whole_run}", "gram.crop_size=18")
  stage += ("schedules.gram_weight.final=1.5", "schedules.gram_weight.start=1.5")
  stage += (f"resolutions={rows}", "total_steps=8", "checkpoint.every=4")
  first, again = tmp_path / "first", tmp_path / "again"
  output = train(first, *stage)
  assert f"student and teacher start from {whole_run}\n" in output
  assert "0.5 of the steps: crops of 12 and 12, Gram of 18 pixels\n" in output
  shutil.copytree(first, again)
  shutil.rmtree(again / "checkpoints" / "8")
  assert "step 4 of 8" in train(again, *stage)
  # Steps 5 to 8 have both rows, as the first four do.
  assert len({resolutions.row_of(k, seed=0, shares=[0.5, 0.5]) for k in (4, 5)}) == 2
  assert logged(again) == logged(first)
  records = [path / "checkpoints/8/record/metadata" for path in (first, again)]
  there, here = (json.loads(path.read_text())["checksums"] for path in records)
  assert there and there == here


def test_a_finished_run_says_so_and_evaluates_its_teacher_again(whole_run, train):
  # Fields that change no result of training may differ from the run's.
  fields = "accumulation=2", "knn.every=2", "knn.ks=(5,)", "knn.linear=False"
  output = train(whole_run, *fields)
  assert "complete at step 40; nothing to train" in output
  assert "the first step" not in output
  for row in ("trained teacher", "same network, untrained", "raw pixels"):
    assert re.search(rf"{row} +\d+\.\d%", output), output
  newest = [event for event in events(whole_run) if event["event"] == "start"][-1]
  assert newest["evaluation_images"] == {"train": 1_347, "test": 450}


def test_a_workdir_of_another_config_is_refused_by_name(whole_run, train):
  output = train(whole_run, "losses.koleo_weight=0.5", status=1)
  assert "config.losses.koleo_weight: 0.1 in the workdir, 0.5 now" in output


def test_a_loss_that_is_not_finite_ends_the_run_before_the_next_save(tmp_path, train):
  fields = {**quickstart.get_config().backbone} | dict(width=16, depth=1, heads=2)
  fields = {name: fields[name] for name in model.ARCHITECTURE}
  huge = jax.tree.map(lambda x: np.full(x.shape, 1e30, x.dtype), model.shapes(fields))
  weights = model.Weights(model.in_one_form(fields), {"backbone": huge})
  formats.write(weights, str(tmp_path / "huge"), "dinojax")
  fields = f"init.backbone={tmp_path / 'huge'}", "checkpoint.every=1"
  output = train(tmp_path / "run", *fields, status=1)
  assert re.search(r"step \d: \w+ is (nan|inf|-inf)", output), output
  assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_images_that_evaluation_cannot_use_end_the_run_after_a_save(tmp_path, train):
  labelled = tmp_path / "labelled"
  for i in range(6):
    path = labelled / "ab"[i % 2] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no image")
  fields = [f"knn.{name}=folder:{labelled}" for name in ("train", "test")]
  output = train(tmp_path / "run", *fields, "knn.every=2", "knn.ks=(5,)", status=1)
  assert "knn.ks asks for 5 neighbours, and config.knn.train has 0 labelled" in output
  assert [x.name for x in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]
