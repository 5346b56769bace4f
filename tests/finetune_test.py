"""The command that fine-tunes, as a user runs it, on scikit-learn's digits."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import children
import jax
import numpy as np
import pytest

from dinojax.weights import formats, model

pytestmark = pytest.mark.process
ROOT = pathlib.Path(__file__).parent.parent
ARCHITECTURE = model.DEFAULTS | dict(
  patch_size=4, pos_grid=4, width=32, depth=2, heads=2, ffn="mlp", registers=0
)
DIGITS = ("--train=embedded:digits:train", "--test=embedded:digits:test")
SMALL = ("--workers=0", "--batch_size=64", "--flip_prob=0", "--crop=16", "--resize=16")
PLAIN = ("--min_area=0.9", "--feature=cls+gap")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """A converted folder of an untrained network."""
  rng = np.random.default_rng(0)

  def fill(path, x):
    around = 1.0 if path[-1].key in ("scale", "gamma") else 0.0
    return np.float32(around + 0.3 * rng.normal(size=x.shape))

  architecture = ARCHITECTURE | dict(pool="gap")
  params = jax.tree_util.tree_map_with_path(fill, model.shapes(architecture))
  path = tmp_path_factory.mktemp("weights") / "net"
  formats.write(model.Weights(architecture, {"backbone": params}), str(path), "dinojax")
  return path


def start(weights, workdir, *arguments):
  given = (f"--checkpoint={weights}", f"--workdir={workdir}", *DIGITS, *SMALL)
  return subprocess.Popen(
    [sys.executable, "-m", "dinojax.finetune", *given, *arguments],
    cwd=ROOT,
    env=children.environment(1),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process, code=0):
  out, err = process.communicate(timeout=300)
  assert process.returncode == code, err
  return out, err


def test_a_head_on_frozen_features_beats_chance(weights, tmp_path):
  options = "--steps=120", "--eval_every=60", "--learning_rate=0.03", *PLAIN
  out, err = finish(start(weights, tmp_path, *options))
  header, last, *_ = out.splitlines()
  assert header.split() == ["top-1", "top-5"]
  assert last.startswith("step 120, last")
  top1, top5 = (float(x.rstrip("%")) / 100 for x in last.split()[-2:])
  assert 0.25 < top1 < top5 <= 1  # chance: 0.1
  assert "trains a linear head on the frozen backbone" in err
  lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
  assert [x["step"] for x in lines if "test_top1" in x] == [60, 120]


def test_all_weights_train_until_a_signal_saves_them(weights, tmp_path):
  options = "--tune=all", "--steps=100000", "--eval_every=100000", "--log_every=1"
  process = start(weights, tmp_path, *options)
  metrics, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 200
  while not (metrics.exists() and metrics.stat().st_size):
    assert process.poll() is None and time.monotonic() < deadline, finish(process)
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  _, err = finish(process, 143)
  assert "the same command resumes there" in err
  (folder,) = (tmp_path / "checkpoints").iterdir()
  assert int(folder.name) >= 1


def test_what_cannot_work_is_one_line_that_names_the_flag(weights, tmp_path):
  _, err = finish(start(weights, tmp_path, "--warmup_steps=1000"), 1)
  assert err.splitlines()[-1] == (
    "dinojax: --warmup_steps=1000 must be at least 0 and below --steps=1000"
  )
