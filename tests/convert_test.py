"""The command that converts weights, as a person runs it."""

import json
import os
import subprocess
import sys

import pytest

from dinojax.weights import formats
from tests.weights import samples

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


def convert(*lines, cwd):
  """(status, stdout, stderr) of each command line."""
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, json.dumps(lines)],
    cwd=cwd,
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": os.getcwd()},
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.process
def test_it_converts_and_ends_on_a_mistake_with_one_line(tmp_path):
  weights = samples.random_weights(samples.PLAIN | dict(pool="gap"))
  formats.write(weights, str(tmp_path / "a"), "dinojax")
  mistakes = {
    ("a", "b.pth"): "b.pth exists; remove it, or choose another name",
    ("a",): "DST missing; see --help",
    ("a", "c", "d"): "'d' is no option; options start with --",
    ("b.pth", "c", "--step=3"): "b.pth is no run, and --step=3 asks for one",
  }
  first, *others = convert(("a", "b.pth", "--pos_grid=4"), *mistakes, cwd=tmp_path)
  assert first[0] == 0, first
  assert "pool=gap" in first[2] and "written to b.pth" in first[2]
  assert formats.read(str(tmp_path / "b.pth")).backbone["pos_grid"] == 4
  for (status, _, said), message in zip(others, mistakes.values(), strict=True):
    assert status == 1 and said.strip() == f"dinojax: {message}"
