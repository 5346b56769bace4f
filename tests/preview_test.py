"""The preview shows each image and all its crops, and refuses what it cannot show."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pictures
import pytest
from PIL import Image

from dinojax.pictures import drawing

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = "--config=experiments/quickstart.py"


def python(*arguments):
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.process
def test_the_command_draws_a_row_for_each_image_and_names_those_that_are_corrupt(
  tmp_path,
):
  folder, out = tmp_path / "photos", tmp_path / "preview.png"
  folder.mkdir()
  for i, pixels in enumerate(pictures.make(3)):
    Image.fromarray(pixels).save(folder / f"{i}.png")
  (folder / "1.png").write_bytes(b"no image")
  done = python(
    *("-m", "dinojax.preview", f"--images=folder:{folder}", CONFIG),
    *(f"--out={out}", "--count=3"),
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == f"{out}: 3 images and their crops\n"
  assert f"corrupt image substituted: {folder}/1.png: cannot identify" in done.stderr
  picture = np.asarray(Image.open(out))
  heads, caption, gap, cell = 16, 16, 6, 224
  assert picture.shape[0] == heads + gap + 3 * (cell + caption + gap)
  assert picture.shape[1] == 5 * (cell + gap)
  rows = picture[heads + gap :].reshape(3, cell + caption + gap, -1, 3)
  for row in rows[:, :cell]:
    for i in range(5):
      assert row[:, i * (cell + gap) :][:, :cell].std() > 10
    lines = {tuple(x) for x in row[:, :cell].reshape(-1, 3).tolist()}
    assert {drawing.LOCAL, *drawing.GLOBALS} <= lines
  hatched = (rows[:, :cell, cell:] == 70).all(-1)
  assert hatched.any((1, 2)).all()  # half of the global crops of a group are masked


@pytest.mark.process
def test_a_page_shows_the_same_and_a_name_in_it_does_nothing(tmp_path):
  folder, out = tmp_path / "photos", tmp_path / "preview.html"
  folder.mkdir()
  (image,) = pictures.make(1)
  Image.fromarray(image).save(folder / "<img src=x onerror=alert(1)>.png")
  done = python(
    *("-m", "dinojax.preview", f"--images=folder:{folder}", CONFIG, f"--out={out}"),
  )
  assert done.returncode == 0, done.stderr
  page = out.read_text()
  assert page.count("<img ") == 5
  assert "<img src=x" not in page and "&lt;img src=x onerror=alert(1)&gt;.png" in page


# In one process of its own: other commands have flags of the same names.
PROGRAM = """
import json, sys
from absl import flags
from dinojax import errors, preview

for arguments in json.loads(sys.argv[1]):
  flags.FLAGS.unparse_flags()
  flags.FLAGS(["preview", *arguments])
  try:
    preview.main([])
  except errors.UserError as error:
    print(error)
"""


@pytest.mark.process
def test_mistakes_are_one_line(tmp_path):
  digits = [CONFIG, "--images=embedded:digits:test"]
  mistakes = [
    ([CONFIG], "--images=SOURCE is missing; try folder:PATH"),
    (digits, "--out=FILE is missing; try preview.png"),
    ([*digits, "--out=x.txt"], "--out=x.txt must end in .png, .jpg or .html"),
    ([*digits, "--out=x.png", "--count=0"], "--count=0 must be within 1 and 200"),
    ([*digits, f"--out={tmp_path}/no/x.png", "--count=1"], "cannot be written"),
    ([CONFIG, "--images=photos", "--out=x.png", "--count=1"], '--images="photos" must'),
  ]
  arguments = json.dumps([arguments for arguments, _ in mistakes])
  done = python("-c", PROGRAM, arguments)
  assert done.returncode == 0, done.stderr
  messages = done.stdout.splitlines()
  for (_, expected), message in zip(mistakes, messages, strict=True):
    assert expected in message
