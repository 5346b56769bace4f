"""The contact sheet shows each image and all its crops, and refuses what it cannot."""

import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent


def sheet(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "dinojax.preview", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_command_draws_a_row_for_each_image(tmp_path):
  out = tmp_path / "sheet.png"
  done = sheet(
    *("--images=embedded:digits:test", "--config=experiments/quickstart.py"),
    *(f"--out={out}", "--count=3"),
  )
  assert done.returncode == 0, done.stderr
  assert "3 images and their crops are in" in done.stderr
  picture = np.asarray(Image.open(out))
  assert picture.shape[0] == 3 * (224 + 6)
  assert (picture.reshape(3, -1).std(axis=1) > 10).all()


def test_mistakes_are_one_line(tmp_path):
  usual = ["--images=embedded:digits:test", "--config=experiments/quickstart.py"]
  for arguments, says in (
    (usual, "--images=SOURCE and --out=FILE.png are both needed"),
    ([*usual, f"--out={tmp_path}/x.txt"], "must end in .png or .jpg"),
    ([*usual, f"--out={tmp_path}/no/x.png"], "cannot be written"),
  ):
    done = sheet(*arguments)
    assert done.returncode == 1
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


EVERY_CROP = """
import numpy as np
from dinojax import preview

crops = {
  "global_crops": np.stack([np.full((99, 99, 3), 10 + i, np.uint8) for i in range(2)]),
  "local_crops": np.stack([np.full((40, 40, 3), 50 + i, np.uint8) for i in range(5)]),
}
image = np.zeros((30, 40, 3), np.uint8)
print(*np.unique(preview.sheet([(image, crops)])))
"""


def test_every_crop_is_somewhere_in_its_row():
  # Apart: its flags have the names of other commands' flags.
  done = subprocess.run(
    [sys.executable, "-c", EVERY_CROP],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split() == ["0", "10", "11", "50", "51", "52", "53", "54", "255"]
