"""The command that writes pages, as a user runs it."""

import json
import pathlib
import subprocess
import sys

import children
import jax
import numpy as np
import pictures
import pytest
import recorded
from PIL import Image

from dinojax.weights import model, runs

pytestmark = pytest.mark.process
ROOT = pathlib.Path(__file__).parent.parent
# Command lines one after the other in one process, up to the line that `cli` prints.
PROGRAM = """
import json, sys
from absl import flags
from dinojax import errors, report

for arguments in json.loads(sys.argv[1]):
  flags.FLAGS.unparse_flags()
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  flags.FLAGS(["report", *arguments])
  try:
    report.main([])
  except errors.UserError as error:
    print(error)
"""


def report(*arguments, code=0):
  """Runs the command; returns what it printed."""
  done = subprocess.run(
    [sys.executable, "-m", "dinojax.report", *map(str, arguments)],
    cwd=ROOT,
    env=children.environment(1),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=100,
  )
  assert done.returncode == code, done.stdout
  return done.stdout


def write(folder, **changes):
  lines = [recorded.numbers(step) for step in range(10, 301, 10)]
  return recorded.write(folder, lines, settings=changes)


def test_a_page_is_written_into_the_workdir_and_named(tmp_path):
  workdir = write(tmp_path / "run")
  assert report(f"--workdir={workdir}").strip() == f"{workdir}/report.html"
  page = (workdir / "report.html").read_text()
  assert "nothing learnt (8.318)" in page  # by the config: there are no events


def test_runs_are_compared_in_a_file_that_has_to_be_named(tmp_path):
  both = [
    f"--workdir={write(tmp_path / x, total_steps=n)}" for x, n in (("a", 1), ("b", 2))
  ]
  report(*both, f"--out={tmp_path}/both.html")
  page = (tmp_path / "both.html").read_text()
  assert "<th>total_steps</th><td>1</td><td>2</td>" in page


def test_a_user_error_is_one_line_with_the_way_out(tmp_path):
  run = f"--workdir={write(tmp_path / 'run')}"
  mistakes = [
    ((), "--workdir=RUN is missing"),
    ((run, run), "--out=FILE is missing"),
    ((run, "--out=/no/such/page.html"), "make it"),
    (("--checkpoint=x",), "--checkpoint=WEIGHTS needs --images=SOURCE and --out"),
  ]
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, json.dumps([given for given, _ in mistakes])],
    **dict(cwd=ROOT, env=children.environment(1), capture_output=True, text=True),
  )
  assert done.returncode == 0, done.stderr
  for (_, message), line in zip(mistakes, done.stdout.splitlines(), strict=True):
    assert message in line


def test_pictures_of_a_runs_weights_are_files_and_on_the_page(tmp_path):
  photos = tmp_path / "photos"
  photos.mkdir()
  for i, pixels in enumerate(pictures.make(4)):
    name = "<img src=x onerror=alert(1)>.png" if i == 1 else f"{i}.png"
    Image.fromarray(pixels).save(photos / name)
  architecture = model.DEFAULTS | dict(
    **dict(patch_size=4, pos_grid=4, width=16, depth=1, heads=2, ffn="mlp"),
    **dict(registers=0, pool="gap"),
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), model.shapes(architecture)
  )
  weights = model.Weights(architecture, {"backbone": params})
  runs.write(tmp_path / "weights", weights)
  images, out = f"--images=folder:{photos}", tmp_path / "new" / "out"
  both = (f"--checkpoint={tmp_path}/weights", images)
  output = report(*both, f"--out={out}", "--workers=0", "--count=2")
  assert output.splitlines()[-1] == f"{out}/report.html"
  page = (out / "report.html").read_text()
  for name in ("components", "similarity", "attention", "neighbours", "map"):
    assert f'id="pictures-{name}"' in page
    assert (out / ("map_pca" if name == "map" else name)).with_suffix(".png").exists()
  assert "&lt;img src=x onerror=alert(1)&gt;.png" in page and "<img src=x" not in page
