"""A process that runs one ingest after the other, and the images that they are given.

It imports JAX, Beam and faiss once for all of them.
"""

import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
from typing import NamedTuple

import numpy as np
import pictures
import pyarrow
from PIL import Image
from pyarrow import parquet

ROOT = pathlib.Path(__file__).parent.parent
IN_MEMORY = ("--direct_running_mode=in_memory", "--direct_num_workers=1")
SHARD = 8  # records
PROGRAM = """
import contextlib, io, json, resource, sys
from absl import flags
from dinojax import errors, ingest

def run(command):
  flags.FLAGS.unparse_flags()
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  ingest.main(flags.FLAGS(command, known_only=True))

answers = sys.stdout
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for line in sys.stdin:
  command, limit = json.loads(line)
  stderr = io.StringIO()
  with contextlib.redirect_stdout(stderr), contextlib.redirect_stderr(stderr):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit or hard, hard))
    try:
      run(command)
      status = 0
    except errors.UserError as error:
      print(errors.printable(f"dinojax: {error}"), file=sys.stderr)
      status = error.status
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
  print(json.dumps([status, stderr.getvalue()]), file=answers, flush=True)
"""


class Ended(NamedTuple):
  """How an ingest ended."""

  status: int
  stderr: str


class Session:
  """Runs ingests in one process."""

  def __init__(self):
    """Starts the process."""
    self._process = subprocess.Popen(
      [sys.executable, "-c", PROGRAM],
      **dict(cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True),
    )

  def ingest(self, *flags, limit=None):
    """Runs one, without processes of its own. limit: bytes of any file."""
    command = ["ingest", *IN_MEMORY, *map(str, flags)]
    self._process.stdin.write(json.dumps([command, limit]) + "\n")
    self._process.stdin.flush()
    return Ended(*json.loads(self._process.stdout.readline()))

  def close(self):
    """Ends the process."""
    self._process.communicate()


def encoded(pixels, kind="PNG", size=None, **options):
  """An image as a file's bytes."""
  image = Image.fromarray(pixels)
  file = io.BytesIO()
  image.resize(size or image.size).save(file, kind, **options)
  return file.getvalue()


def write_tar(path, files):
  """Writes a tar file of (name, content); names may hold any bytes."""
  options = dict(format=tarfile.GNU_FORMAT, errors="surrogateescape")
  with tarfile.open(path, "w", **options) as tar:
    for name, content in files:
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))


def write_images(folder):
  """20 pictures in two classes; copies and damage in a tar file; a set to exclude."""
  *shown, other = pictures.make(21)
  for i, pixels in enumerate(shown):
    path = folder / "photos" / ("cat" if i < 8 else "dog") / f"{i:02}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(pixels))
  frames = [Image.fromarray(pixels) for pixels in shown[:2]]
  animation = io.BytesIO()
  frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
  copies = {
    "a": (folder / "photos/cat/01.png").read_bytes(),  # the same file
    "b": encoded(shown[2], "BMP"),  # the same pixels
    "c": encoded(shown[3], "JPEG", quality=60),
    "d": encoded(shown[4], "JPEG", (96, 96)),  # larger than what it is a copy of
    "e": encoded(shown[5])[:500],
    "f": b"no image",
    "g": animation.getvalue(),
    "h": encoded(shown[6], size=(64, 6)),
    "i": encoded(shown[6], size=(64, 9)),
    "j": encoded(other),
  }
  files = {f"{key}.png": content for key, content in copies.items()}
  files |= {"d.cls": b"cat", "j.cls": b"1"}
  write_tar(folder / "0.tar", sorted(files.items()))
  (folder / "test").mkdir()
  (folder / "test/0.jpg").write_bytes(encoded(shown[7], "JPEG", quality=80))


def write_odd_images(folder):
  """8 sound images of odd names, labels and kinds; 3 files that cannot be read.

  Returns:
    the folder's name below `folder`, and keys of the images in the tar file.
  """
  odd = os.fsdecode(b"caf\xe9 \x1b[31m\n<b>")
  *shown, photo = [Image.fromarray(pixels) for pixels in pictures.make(8, seed=1)]
  files = [encoded(np.asarray(image)) for image in shown]
  (folder / odd / odd).mkdir(parents=True)
  (folder / odd / odd / f"{odd}.png").write_bytes(files.pop())
  (folder / odd / odd / "broken\x1b.png").write_bytes(b"\x1b[31m\n")
  with open(folder / odd / odd / "huge.jpg", "wb") as file:
    file.truncate(4 << 30)
  os.mkfifo(folder / odd / odd / "fifo.jpg")
  keys = {
    f"{odd}/1.2": str(2**64 + 5),
    **{"IMG_2020.01.05": "9" * 5000, "frame.left": "1", "frame.right": "cat"},
  }
  members = []
  for key, label in keys.items():
    members += [(f"{key}.png", files.pop()), (f"{key}.cls", label.encode())]
  write_tar(folder / odd / "0.tar", [*members, ("no.image.png", b"")])
  mpo = io.BytesIO()
  photo.save(mpo, "MPO", save_all=True, append_images=[photo.resize((32, 32))])
  rows = {
    "image": pyarrow.array([*files, mpo.getvalue()]),
    "label": pyarrow.array([2**64 - 1, 2**63, 1], pyarrow.uint64()),
  }
  with open(folder / odd / "0.parquet", "wb") as file:
    parquet.write_table(pyarrow.table(rows), file)
  return odd, list(keys)


def flags_of(data, out):
  """Flags of an ingest of `write_images`."""
  inputs = [f"--images=folder:{data}/photos", f"--images=tar:{data}/*.tar"]
  limits = ["--min_side=8", "--max_aspect=4", f"--records_per_shard={SHARD}"]
  return [*inputs, f"--exclude=folder:{data}/test", *limits, f"--out={out}"]
