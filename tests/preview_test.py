"""The preview shows each image and all its crops, and refuses what it cannot show."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pictures
import pytest
from PIL import Image

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
  assert picture.shape[0] == 3 * (224 + 6)
  assert (picture.reshape(3, -1).std(axis=1) > 10).all()


# In one process of its own: other commands have flags of the same names.
PROGRAM = """
import json, sys
import numpy as np
from absl import flags
from dinojax import errors, preview

crops = {
  "global_crops": np.stack([np.full((99, 99, 3), 10 + i, np.uint8) for i in range(2)]),
  "local_crops": np.stack([np.full((40, 40, 3), 50 + i, np.uint8) for i in range(5)]),
}
image = np.zeros((30, 40, 3), np.uint8)
print(*np.unique(preview.sheet([(image, crops)])))
for arguments in json.loads(sys.argv[1]):
  flags.FLAGS.unparse_flags()
  flags.FLAGS(["preview", *arguments])
  try:
    preview.main([])
  except errors.UserError as error:
    print(error)
"""


@pytest.mark.process
def test_every_crop_is_in_its_row_and_mistakes_are_one_line(tmp_path):
  digits = [CONFIG, "--images=embedded:digits:test"]
  mistakes = [
    ([CONFIG], "--images=SOURCE is missing; try folder:PATH"),
    (digits, "--out=FILE is missing; try preview.png"),
    ([*digits, "--out=x.txt"], "--out=x.txt must end in .png or .jpg"),
    ([*digits, "--out=x.png", "--count=0"], "--count=0 must be within 1 and 200"),
    ([*digits, f"--out={tmp_path}/no/x.png", "--count=1"], "cannot be written"),
    ([CONFIG, "--images=photos", "--out=x.png", "--count=1"], '--images="photos" must'),
  ]
  arguments = json.dumps([arguments for arguments, _ in mistakes])
  done = python("-c", PROGRAM, arguments)
  assert done.returncode == 0, done.stderr
  values, *messages = done.stdout.splitlines()
  assert values == "0 10 11 50 51 52 53 54 255"
  for (_, expected), message in zip(mistakes, messages, strict=True):
    assert expected in message
