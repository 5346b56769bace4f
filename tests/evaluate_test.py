"""The command that rates a backbone: its table, files, cache and refusals."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from dinojax import checkpoint, errors
from dinojax import evaluate as main
from dinojax.weights import formats, model

ROOT = pathlib.Path(__file__).parent.parent
ARCHITECTURE = dict(
  patch_size=4, pos_grid=4, width=16, depth=5, heads=1, ffn="mlp", registers=0
)
DIGITS = ("--train=embedded:digits:train", "--test=embedded:digits:test")
TASKS = ("--tasks=knn,linear,retrieval", "--ks=10", "--shots=2", "--tries=2")


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


def evaluate(*arguments, cwd):
  """The command line, on another number of devices than `run`."""
  flags = "--xla_force_host_platform_device_count=2"
  return subprocess.run(
    [sys.executable, "-m", "dinojax.evaluate", *arguments],
    cwd=cwd,
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
    check=False,
  )


def run(**values):
  """The same within this process; retrieval of one set in itself unless told."""
  digits = dict(train="embedded:digits:test", test="embedded:digits:test", workers=0)
  values = {"tasks": ["retrieval"], "recall": ["1"], "step": None} | digits | values
  with flagsaver.flagsaver(**values):
    main.main(None)


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def rated(workdir, tmp_path_factory):
  """What the command line leaves, by name, after three tasks at once."""
  folder = tmp_path_factory.mktemp("rated")
  done = evaluate(
    *(f"--checkpoint={workdir}", "--linear_steps=50", "--workers=0", *TASKS, *DIGITS),
    *("--results=results.json", "--cache=kept", "--feature=cls+gap", "--layers=4"),
    cwd=folder,
  )
  assert done.returncode == 0, done.stderr
  return {
    "said": done.stderr,
    "saved": json.loads((folder / "results.json").read_text()),
    "kept": folder / "kept",
  }


def test_tasks_run_at_once_and_leave_table_json_and_metrics(workdir, rated):
  for row in (
    "k-NN, k=10 ",
    "k-NN, k=2, 2 images per class",
    "linear, cls",
  ):
    assert row in rated["said"]
  assert "mAP      recall@1" in rated["said"]
  saved = rated["saved"]
  assert saved["resize"] == saved["crop"] == 16 and saved["feature"] == "cls+gap"
  assert saved["step"] == 30
  results = saved["results"]
  assert results["knn_top1_k10"] > 0.2  # random features tell something of digits
  assert len(results["linear_grid"]) == 52

  lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert lines[0] == {"step": 30, "loss": 5.0}
  assert [line["step"] for line in lines[:2]] == [30, 30]
  assert lines[1]["eval_knn_top1_k10"] == results["knn_top1_k10"]


def test_each_task_and_where_its_features_come_from_is_told(rated):
  said = rated["said"].splitlines()
  wanted = [
    "features of --train, 1,347 images: computing, to be kept in --cache=kept",
    "features of --test, 450 images: computing, to be kept in --cache=kept",
    "knn: 1,347 images of --train, 450 images of --test, 128 features each",
    "linear: 1,347 images of --train, 450 images of --test, 80 features each",
    "retrieval: 1,347 images of --train, 450 images of --test, 128 features each",
  ]
  assert [line for line in said if line in wanted] == wanted


def test_cached_features_serve_the_same_weights_and_transform_alone(
  workdir, rated, tmp_path, capsys
):
  def told(checkpoint, **changes):
    layers = dict(feature="cls+gap", layers=4)
    run(checkpoint=str(checkpoint), cache=str(rated["kept"]), **layers, **changes)
    (line,) = [
      x for x in capsys.readouterr().err.splitlines() if "features of --train" in x
    ]
    return line.partition(", ")[2].removesuffix(f"--cache={rated['kept']}")

  # Of two devices before, of eight now.
  assert told(workdir) == "450 images: from "
  weights = formats.read(str(workdir))
  same, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
  formats.write(weights, str(same), "huggingface")
  # It knows the run's resize and crop.
  assert told(same) == "450 images: from "
  assert told(workdir, resize=20) == "450 images: computing, to be kept in "
  weights.params["backbone"]["norm"]["bias"][0] += 1
  formats.write(weights, str(other), "huggingface")
  assert told(other) == "450 images: computing, to be kept in "
  assert len(list(rated["kept"].iterdir())) == 4


def test_without_a_cache_features_are_computed_of_the_runs_own_kind(workdir, capsys):
  run(checkpoint=str(workdir), tasks=["logreg"])
  said = capsys.readouterr().err
  assert "features of --test, 450 images: computing\n" in said
  assert "logreg: 450 images of --train, 450 images of --test, 16 features" in said
  assert "logistic regression, C=" in said
  assert "step 30, heads 1, pool gap" in said and "feature gap, layers 1" in said


@pytest.mark.parametrize(
  "changes, message",
  [
    (
      dict(tasks=["knn", "foo"]),
      "--tasks=foo must be some of knn, linear, logreg, retrieval",
    ),
    (dict(ks=["1", "x"]), "--ks=1,x must be numbers from 1 with commas between"),
    (
      dict(checkpoint="/nope"),
      "/nope does not exist; give a run's workdir or weights",
    ),
    (dict(layers=9), "--layers=9 must be within 1 and 5"),
    (dict(crop=15), "--crop=15 must be a multiple of the patch size, 4; try 16"),
    (dict(step=7), "has no checkpoint of step 7, only [30]"),
    (dict(train=""), "--train=SOURCE is missing, such as folder:PHOTOS"),
    (dict(test=str(ROOT)), f"did you mean folder:{ROOT}?"),
  ],
)
def test_a_mistake_is_named(workdir, changes, message):
  with pytest.raises(errors.UserError, match=re.escape(message)):
    run(**{"checkpoint": str(workdir)} | changes)


def test_labels_are_matched_by_the_names_of_classes(tmp_path):
  for name in ("train/ant", "train/bee", "train/cat", "test/cat", "val/bee"):
    (tmp_path / name).mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / name / "0.png")
  given = {name: f"folder:{tmp_path}/{name}" for name in ("train", "test", "val")}
  with flagsaver.flagsaver(**given):
    opened = main.open_sources()
  labels = {
    name: [source[i]["label"] for i in range(len(source))]
    for name, source in opened.items()
  }
  assert labels == {"train": [0, 1, 2], "test": [2], "val": [1]}


def test_a_mistake_is_one_line(tmp_path):
  done = evaluate(*DIGITS, "stray", cwd=tmp_path)
  assert done.returncode == 1
  (line,) = [x for x in done.stderr.splitlines() if x.startswith("dinojax: ")]
  assert "'stray' is no option; options start with --" in line
  assert "Traceback" not in done.stderr
