"""Whole commands on the device: a run that resumes, the benchmark, CIFAR-10."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import children
import main_test
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PIXELS, CHANCE = 0.44, 0.1  # of CIFAR-10: k-NN of raw pixels, and of nothing


def test_an_interrupted_run_resumes_and_costs_what_a_straight_one_does(
  platform, tmp_path
):
  straight, stopped = tmp_path / "straight", tmp_path / "stopped"
  main_test.finish(main_test.start(straight))
  since, process = time.time(), main_test.start(stopped)
  main_test.wait_for_steps(stopped, process, since)
  process.send_signal(signal.SIGTERM)
  output = main_test.finish(process, code=128 + signal.SIGTERM)
  assert re.search(r"interrupted; step \d+ is saved in", output)
  main_test.finish(main_test.start(stopped))
  one, other = main_test.logged(straight), main_test.logged(stopped)
  assert [entry["step"] for entry in one] == [entry["step"] for entry in other]
  # A GPU adds up gradients in an order of its own each time.
  rounding = 0 if platform == "cpu" else 1e-2
  for a, b in zip(one, other, strict=True):
    assert b["loss"] == pytest.approx(a["loss"], rel=rounding)


def test_the_benchmark_of_the_step_runs(platform, tmp_path):
  out = tmp_path / "step.json"
  size = ["--config=experiments/vits14.py", "--batch=64", "--steps=10"]
  if platform == "cpu":
    size = ["--small", "--steps=2", "--batch=8", "--matmul=512"]
  command = [sys.executable, "tests/bench/step.py", *size, f"--json={out}"]
  command += ["--peer=none", f"--profile={tmp_path / 'trace'}"]
  subprocess.run(command, cwd=ROOT, env=children.environment(1), check=True)
  result = json.loads(out.read_text())["dinojax"]
  print(json.dumps(result, indent=2))
  assert result["images_per_s"] > 0
  assert result["peak_bytes"] > 0


def test_cifar10_teaches_in_minutes(platform, request, tmp_path):
  folder, minutes = (request.config.getoption(x) for x in ("cifar10", "minutes"))
  if not folder:
    pytest.skip("give --cifar10=FOLDER, which holds train and test")
  train, test = (
    f"folder:{pathlib.Path(folder).resolve()}/{x}" for x in ("train", "test")
  )
  run = [sys.executable, "-m", "dinojax.main", "--config=experiments/cifar10.py"]
  run += [f"--config.data.sources=({train!r},)", f"--config.workdir={tmp_path}"]
  run += ["--config.knn.every=0"]
  process = subprocess.Popen(run, cwd=ROOT, env=children.environment(1))
  time.sleep(60 * minutes)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=300) == 128 + signal.SIGTERM
  evaluate = [sys.executable, "-m", "dinojax.evaluate", f"--checkpoint={tmp_path}"]
  evaluate += [f"--train={train}", f"--test={test}", "--tasks=knn", "--ks=10"]
  evaluate += ["--resize=32", "--crop=32", f"--results={tmp_path / 'results.json'}"]
  subprocess.run(evaluate, cwd=ROOT, env=children.environment(1), check=True)
  found = json.loads((tmp_path / "results.json").read_text())["knn_top1_k10"]
  print(f"k-NN after {minutes:g} minutes: {found:.1%}")
  assert found > (PIXELS if platform == "gpu" else 2 * CHANCE)
