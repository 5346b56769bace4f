"""The command that rates a backbone: its table, files, cache and refusals."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from dinojax import checkpoint
from dinojax.weights import formats, model

ROOT = pathlib.Path(__file__).parent.parent
ARCHITECTURE = dict(
  patch_size=4, pos_grid=4, width=64, depth=5, heads=1, ffn="mlp", registers=0
)
DIGITS = ("--train=embedded:digits:train", "--test=embedded:digits:test")
TASKS = ("--tasks=knn,linear,logreg,retrieval", "--ks=10", "--shots=2", "--tries=2")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run with one checkpoint, step 30, of random weights."""
  folder = tmp_path_factory.mktemp("run")
  rng = np.random.default_rng(0)
  fill = lambda x: (0.1 * rng.normal(size=x.shape)).astype(np.float32)  # noqa: E731
  backbone = jax.tree.map(fill, model.shapes(ARCHITECTURE | dict(pool="gap")))
  record = {
    "step": 30,
    "data_fingerprint": "f",
    "config": {
      "backbone": ARCHITECTURE | dict(pool="gap", drop_path=0.1),
      "knn": {"resize": 16, "crop": 16},
    },
  }
  saver = checkpoint.Checkpoints(str(folder), every=1, keep_last=1, keep_best=0)
  saver.save(30, {"teacher": {"backbone": jax.device_put(backbone)}}, record)
  saver.close()
  (folder / "metrics.jsonl").write_text('{"step": 30, "loss": 5.0}\n')
  return folder


def evaluate(*arguments, cwd, devices=1):
  flags = f"--xla_force_host_platform_device_count={devices}"
  return subprocess.run(
    [sys.executable, "-m", "dinojax.evaluate", *arguments],
    cwd=cwd,
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
    check=False,
  )


def test_all_tasks_run_at_once_and_leave_table_json_and_metrics(workdir, tmp_path):
  done = evaluate(
    *(f"--checkpoint={workdir}", "--linear_steps=60", "--workers=0", *TASKS, *DIGITS),
    "--results=results.json",
    cwd=tmp_path,
    devices=4,
  )
  assert done.returncode == 0, done.stderr
  for row in (
    "k-NN, k=10 ",
    "k-NN, k=2, 2 images per class",
    "linear, cls",
    "logistic",
  ):
    assert row in done.stderr
  assert "mAP      recall@1" in done.stderr
  saved = json.loads((tmp_path / "results.json").read_text())
  assert saved["resize"] == saved["crop"] == 16 and saved["feature"] == "gap"
  results = saved["results"]
  assert results["knn_top1_k10"] > 0.25  # random features tell something of digits
  assert len(results["linear_grid"]) == 52

  lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert lines[0] == {"step": 30, "loss": 5.0}
  assert [line["step"] for line in lines] == [30, 30]
  assert lines[1]["eval_knn_top1_k10"] == results["knn_top1_k10"]


def test_cached_features_serve_the_same_weights_and_transform_alone(workdir, tmp_path):
  def run(checkpoint, *more):
    done = evaluate(
      *(f"--checkpoint={checkpoint}", "--ks=10", "--workers=0", "--cache=kept"),
      *(*DIGITS, *more),
      cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return len(list((tmp_path / "kept").iterdir()))

  assert run(workdir) == 2  # of train and of test
  weights = formats.read(str(workdir))
  formats.write(weights, str(tmp_path / "same.safetensors"), "huggingface")
  assert run("same.safetensors") == 2  # it knows the run's resize and crop
  assert run(workdir, "--resize=20") == 4
  weights.params["backbone"]["norm"]["bias"][0] += 1
  formats.write(weights, str(tmp_path / "other.safetensors"), "huggingface")
  assert run("other.safetensors") == 6


@pytest.mark.parametrize(
  "flag, message",
  [
    ("--tasks=knn,foo", "--tasks=foo must be some of knn, linear, logreg, retrieval"),
    ("--ks=1,x", "--ks=1,x must be numbers from 1 with commas between"),
    ("--checkpoint=/nope", "/nope does not exist; give a run's workdir or weights"),
    ("--layers=9", "--layers=9 must be within 1 and 5"),
    ("--crop=15", "--crop=15 must be a multiple of the patch size, 4; try 16"),
    ("--step=7", "has no checkpoint of step 7, only [30]"),
    ("--train=", "--train=SOURCE is missing, such as folder:PHOTOS"),
    ("stray", "'stray' is no option; options start with --"),
  ],
)
def test_a_mistake_is_one_line(workdir, tmp_path, flag, message):
  done = evaluate(f"--checkpoint={workdir}", *DIGITS, flag, cwd=tmp_path)
  assert done.returncode == 1
  (line,) = [x for x in done.stderr.splitlines() if x.startswith("dinojax: ")]
  assert message in line and "Traceback" not in done.stderr
