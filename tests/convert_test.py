"""The command that converts weights, as a person runs it."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from dinojax.weights import formats
from tests.weights import samples

pytestmark = pytest.mark.process
# Each command line as `python -m dinojax.convert` runs it, in one process.
PROGRAM = """
import contextlib, io, json, runpy, sys
from absl import flags
import dinojax.commands.backbone_flags
for arguments in json.loads(sys.argv.pop()):
  flags.FLAGS.unparse_flags()
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  sys.argv[1:], status = arguments, 0
  texts = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(texts[0]), contextlib.redirect_stderr(texts[1]):
    try:
      runpy.run_module("dinojax.convert", run_name="__main__", alter_sys=True)
    except SystemExit as error:
      status = error.code or 0
  print(json.dumps([status, *(text.getvalue() for text in texts)]))
"""
# The command, which waits once it has begun to write.
WAITING = """
import runpy, time, torch

def save(arrays, file):
  file.write(b"half")
  print("writing", flush=True)
  time.sleep(60)

torch.save = save
runpy.run_module("dinojax.convert", run_name="__main__", alter_sys=True)
"""


def start(program, *arguments, cwd):
  return subprocess.Popen(
    [sys.executable, "-c", program, *arguments],
    cwd=cwd,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, "PYTHONPATH": os.getcwd()},
  )


def convert(*lines, cwd):
  """(status, stdout, stderr) of each command line."""
  process = start(PROGRAM, json.dumps(lines), cwd=cwd)
  output, said = process.communicate()
  assert process.returncode == 0, said
  return [json.loads(line) for line in output.splitlines()]


def test_results_are_on_stdout_notes_on_stderr_and_mistakes_are_one_line(tmp_path):
  weights = samples.random_weights(samples.PLAIN | dict(pool="gap"))
  formats.write(weights, str(tmp_path / "a"), "dinojax")
  weights.params["backbone"]["cls_token"][:] = np.nan
  formats.write(weights, str(tmp_path / "nan.safetensors"), "huggingface")
  mistakes = {
    ("a", "b.pth"): "b.pth exists; remove it, or choose another name",
    ("a",): "DST missing; see --help",
    ("a", "c", "d"): "'d' is no option; options start with --",
    ("b.pth", "c", "--step=3"): "b.pth is no run, and --step=3 asks for one",
    ("nan.safetensors", "c"): "nan.safetensors: embeddings.cls_token has 64 values that"
    " are not finite (NaN or infinite); the file is damaged, or its training diverged:"
    " give other weights",
    ("a", "c.onnx", "--to=released"): "--to=released is a format of weights; leave it"
    " out here",
    ("a", "c", "--pos_grid=0"): "--pos_grid=0 must be within 1 and 16384",
    ("a", "c.pth", "--head"): "--head is for programs, and c.pth is none; give"
    " .stablehlo or .onnx",
    ("a", "c.onnx", "--head", "--pool=gap"): "--pool=gap and --head exclude each other",
    ("a", "c.onnx", "--head"): "a holds no classifier; give --workdir of python -m"
    " dinojax.finetune",
  }
  first, *others = convert(("a", "b.pth", "--pos_grid=4"), *mistakes, cwd=tmp_path)
  status, output, notes = first
  assert status == 0, first
  assert output == (
    "a: patch_size=2, pos_grid=4, width=64, depth=3, heads=1, ffn=mlp, registers=0,"
    " pool=gap\n  backbone: 152,512 parameters\nwritten to b.pth\n"
  )
  assert notes == "not stored in b.pth: pool=gap: give --pool when it is read again\n"
  assert formats.read(str(tmp_path / "b.pth")).backbone["pos_grid"] == 4
  for (status, output, said), message in zip(others, mistakes.values(), strict=True):
    assert (status, output, said.strip()) == (1, "", f"dinojax: {message}")
  assert {path.name for path in tmp_path.iterdir()} == {"a", "b.pth", "nan.safetensors"}


def test_a_signal_while_it_writes_leaves_nothing(tmp_path):
  torch.save(samples.released_arrays(tmp_path), tmp_path / "a.pth")
  before = set(tmp_path.iterdir())
  process = start(WAITING, "a.pth", "b.pth", cwd=tmp_path)
  assert process.stdout.readline() == "writing\n"
  process.send_signal(signal.SIGTERM)
  said = process.communicate(timeout=60)[1]
  assert process.returncode == 143
  assert said == "dinojax: interrupted; nothing is written\n"
  assert set(tmp_path.iterdir()) == before
