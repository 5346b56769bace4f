"""Ingest by its command line: what is kept, the same bytes always, and every fault."""

import contextlib
import csv
import io
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tarfile
import time

import children
import jax
import numpy as np
import pictures
import pytest
import tensorflow_datasets as tfds
from absl import flags
from PIL import Image

from dinojax.data import images, mixture, sources, train_batches
from dinojax.weights import formats, model

ROOT = pathlib.Path(__file__).parent.parent
IN_MEMORY = ("--direct_running_mode=in_memory", "--direct_num_workers=1")
SHARD = 8  # records
ARCHITECTURE = dict(
  **dict(patch_size=4, pos_grid=4, width=16, depth=1, heads=2),
  **dict(ffn="mlp", registers=0, pool="gap"),
)


def encoded(pixels, kind="PNG", size=None, **options):
  image = Image.fromarray(pixels)
  file = io.BytesIO()
  image.resize(size or image.size).save(file, kind, **options)
  return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """20 pictures in two classes; copies and damage in a tar file; a set to exclude."""
  folder = tmp_path_factory.mktemp("data")
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
  with tarfile.open(folder / "0.tar", "w") as tar:
    for name, content in sorted(files.items()):
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  (folder / "test").mkdir()
  (folder / "test/0.jpg").write_bytes(encoded(shown[7], "JPEG", quality=80))
  return folder


def command(data, out, *more):
  inputs = [f"--images=folder:{data}/photos", f"--images=tar:{data}/*.tar"]
  flags = [f"--exclude=folder:{data}/test", "--min_side=8", "--max_aspect=4"]
  flags += [f"--records_per_shard={SHARD}", f"--out={out}", *more]
  return [sys.executable, "-m", "dinojax.ingest", *inputs, *flags]


def run(*args, **options):
  return subprocess.run(
    command(*args), cwd=ROOT, capture_output=True, text=True, check=False, **options
  )


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
  out = tmp_path_factory.mktemp("made") / "web" / "1.0.0"
  result = run(data, out, *IN_MEMORY)
  assert result.returncode == 0, result.stderr
  return out


def contents(out):
  # The index that a reader leaves is hidden, and no part of it.
  names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
  return {name: (out / name).read_bytes() for name in names}


def test_duplicates_and_damage_are_out_and_all_else_is_there_once(made, data):
  with open(made / "dropped.csv", newline="") as file:
    rows = list(csv.reader(file))[1:]
  tar = f"{data}/0.tar"
  photos = f"{data}/photos"
  dropped = {name: (reason, kept) for name, reason, _, kept in rows}
  assert dropped == {
    f"{tar}:a": ("exact duplicate", f"{photos}/cat/01.png"),
    f"{tar}:b": ("exact duplicate", f"{photos}/cat/02.png"),
    f"{tar}:c": ("near duplicate", f"{photos}/cat/03.png"),
    f"{photos}/cat/04.png": ("near duplicate", f"{tar}:d"),
    f"{photos}/cat/07.png": ("in an excluded set", f"{data}/test/0.jpg"),
    f"{tar}:e": ("unreadable", ""),
    f"{tar}:f": ("unreadable", ""),
    f"{tar}:g": ("animated", ""),
    f"{tar}:h": ("too small", ""),
    f"{tar}:i": ("too elongated", ""),
  }
  builder = tfds.builder_from_directory(made)
  kept = [x["source"].decode() for x in builder.as_data_source("train")]
  found = [str(path) for path in sorted((data / "photos").rglob("*.png"))]
  assert kept == [name for name in [*found, f"{tar}:d", f"{tar}:j"] if name in kept]
  found += [f"{tar}:{key}" for key in "abcdefghij"]
  assert sorted([*kept, *dropped]) == sorted(found)


def test_our_sources_and_tfds_read_the_same_images_and_labels(made, data, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(made.parents[1]))
  by_tfds = sources.open_source("tfds:web:train", field="x")
  by_glob = sources.open_source(f"arrayrecord:{made}/*.array_record*", field="x")
  assert len(by_tfds) == len(by_glob) == 20
  first = (data / "photos/cat/00.png").read_bytes()
  assert by_tfds[0]["image"] == by_glob[0]["image"] == first
  labels = [by_tfds[i]["label"] for i in range(20)]
  assert labels == [by_glob[i]["label"] for i in range(20)]
  assert by_tfds.class_names == by_glob.class_names == ("cat", "dog", "0", "1")
  assert labels == [0] * 6 + [1] * 12 + [-1, 3]  # the tar file's classes are numbers


GROUPS, STEPS = 4, 5  # groups of two: exactly two epochs of 20 images


def read(source, workers):
  """Two epochs' batches; each of `workers` is a host, and how many of them it has."""
  share = GROUPS // len(workers)
  with contextlib.ExitStack() as stack:
    hosts = [
      train_batches.stream(
        mixture.Mixture([source], [1.0]),
        seed=0,
        batch_size=2 * GROUPS,
        group_size=2,
        multi_crop=pictures.corners,
        masks=dict(views=2, grid=4, ratio_min=0.1, ratio_max=0.5),
        groups=range(host * share, (host + 1) * share),
        workers=count,
        start_step=0,
      )
      for host, count in enumerate(workers)
    ]
    for batches in hosts:
      stack.callback(batches.close)
    for _ in range(STEPS):
      parts = [next(batches) for batches in hosts]
      yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("workers", [(4,), (1, 3), (0, 2, 0, 0)])
def test_training_sees_each_kept_record_once_an_epoch_on_any_hosts_and_workers(
  made, workers
):
  flags.FLAGS.mark_as_parsed()
  source = sources.open_source(f"arrayrecord:{made}/*.array_record*", field="x")
  batches = list(read(source, workers))
  for batch, alone in zip(batches, read(source, (0,)), strict=True):
    assert batch.keys() == alone.keys()
    for name, values in alone.items():
      np.testing.assert_array_equal(batch[name], values)
  kept = [images.decode(source[i]["image"])[:4, :4].tobytes() for i in range(20)]
  assert len(set(kept)) == 20
  seen = [crops[0].tobytes() for batch in batches for crops in batch["global_crops"]]
  assert sorted(seen[:20]) == sorted(seen[20:]) == sorted(kept)
  assert seen[:20] != seen[20:]


def test_manifest_and_report_tell_of_everything(made, data):
  manifest = json.loads((made / "manifest.json").read_text())
  assert manifest["records"] == 20
  assert manifest["dropped"] == {
    **{"unreadable": 2, "animated": 1, "too small": 1, "too elongated": 1},
    **{"exact duplicate": 2, "near duplicate": 2, "in an excluded set": 1},
  }
  excluded, photos, tar = manifest["inputs"]
  assert (excluded["images"], photos["images"], tar["images"]) == (1, 20, 10)
  assert (photos["kept"], tar["kept"]) == (18, 2)
  assert [shard["records"] for shard in manifest["shards"]] == [8, 8, 4]
  assert manifest["shards"][2]["sources"] == {
    f"folder:{data}/photos": 2,
    f"tar:{data}/0.tar": 2,
  }
  for shard in manifest["shards"]:
    assert (made / shard["name"]).exists()
  classes, *warnings = manifest["classes"]
  assert classes == (
    f"4 classes: 2 named by folder:{data}/photos, 2 numbers of tar:{data}/*.tar"
  )
  assert len(warnings) == 2 and "1 kept images have no label" in warnings[1]
  report = (made / "report.html").read_text()
  assert classes in report
  assert report.count("data:image/jpeg") == 13  # two of each pair, and of 3 refused one
  assert "2 frames" in report and "64x9 pixels" in report


def test_again_it_says_that_all_is_there_and_changes_nothing(made, data):
  before = {path: path.stat().st_mtime_ns for path in made.parent.rglob("*")}
  result = run(data, made)
  assert result.returncode == 0
  assert result.stderr == f"{made} is complete; nothing to do\n"
  assert {path: path.stat().st_mtime_ns for path in made.parent.rglob("*")} == before


def test_killed_and_cut_off_by_a_full_disk_it_goes_on_to_the_same_bytes(
  made, data, tmp_path
):
  out = tmp_path / "web" / "1.0.0"
  work = out.with_name("1.0.0.work")
  process = subprocess.Popen(command(data, out), cwd=ROOT, stderr=subprocess.DEVNULL)
  wait_until(lambda: list(work.glob("scan/*.npy")))
  started = children.of(process.pid)
  process.kill()
  process.wait()
  children.wait_until_gone(started)

  def limit():  # a shard is larger: array_record writes at least 64 KiB
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

  full = run(data, out, *IN_MEMORY, preexec_fn=limit)
  assert full.returncode == 1
  line = full.stderr.splitlines()[-1]
  assert line.startswith(f"dinojax: --out={out} cannot be written (")
  assert "File too large" in line and "Traceback" not in full.stderr
  assert not out.exists()
  assert not list(out.parent.rglob("*.new"))
  assert run(data, out).returncode == 0
  assert contents(out) == contents(made)
  assert {path.name for path in out.parent.iterdir()} == {"1.0.0", "1.0.0.json"}


def wait_until(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_signals_end_all_processes(data, tmp_path, number, code):
  os.mkfifo(tmp_path / "endless.png")  # takes for ever to be read
  extra = f"--images=folder:{tmp_path}"
  before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in background jobs
  process = subprocess.Popen(
    command(data, tmp_path / "o", extra), cwd=ROOT, stderr=subprocess.PIPE, text=True
  )
  signal.signal(signal.SIGINT, before)
  wait_until(lambda: list((tmp_path / "o.work").glob("scan/*.npy")))
  started = children.of(process.pid)
  assert started
  process.send_signal(number)
  _, said = process.communicate(timeout=60)
  assert process.returncode == code
  assert "Traceback" not in said and "ended; the same command resumes" in said
  children.wait_until_gone(started)
  assert not (tmp_path / "o").exists()


def test_embeddings_drop_look_alikes_and_sample_evenly(data, tmp_path):
  weights = tmp_path / "a.safetensors"
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), model.shapes(ARCHITECTURE)
  )
  backbone = model.Weights(ARCHITECTURE, {"backbone": params})
  formats.write(backbone, str(weights), "huggingface")
  out = tmp_path / "o"
  flags = ("--near_bits=-1", "--near_cosine=0.999", "--sample=12", "--clusters=4")
  more = (f"--checkpoint={weights}", "--crop=16", "--resize=16", "--batch_size=8")
  result = run(data, out, *IN_MEMORY, *flags, *more)
  assert result.returncode == 0, result.stderr
  manifest = json.loads((out / "manifest.json").read_text())
  assert manifest["records"] == 12
  dropped = manifest["dropped"]
  assert dropped["similar embedding"] >= 2
  assert sum(dropped.values()) + 12 == 30
  assert manifest["given"]["weights"]


def test_images_are_shrunk_to_a_shorter_side(data, tmp_path):
  out = tmp_path / "o"
  flags = ("--shorter_side=32", "--exact=off", "--near_bits=-1")
  assert run(data, out, *IN_MEMORY, *flags).returncode == 0
  source = sources.open_source(f"arrayrecord:{out}/*.array_record*", field="x")
  sizes = {images.decode(source[i]["image"]).shape for i in range(len(source))}
  assert sizes == {(32, 32, 3)}


MISTAKES = """
import json, sys
from absl import flags
from dinojax import errors, ingest

for command in json.loads(sys.argv[1]):
  flags.FLAGS.unparse_flags()
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  rest = flags.FLAGS(command, known_only=True)
  try:
    ingest.main(rest)
  except errors.UserError as error:
    print(error)
"""


def test_mistakes_take_one_line_and_leave_nothing(made, data, tmp_path):
  mistakes = {
    "--min_sid=3": "nor of Beam; did you mean --min_side?",
    "--quality=101": "--quality=101 must be within 1 and 95",
    "--max_aspect=0.5": "--max_aspect=0.5 must be at least 1, or 0",
    "--near_cosine=0.9": "--near_cosine needs --checkpoint=WEIGHTS",
    "--images=tar:/nowhere/*": '--images="tar:/nowhere/*" matches no file',
    f"--images=tar:{data}": f"is a folder; give tar:{data}/*.tar",
    f"--images=tar:{data}/test/*.jpg": "matches no tar file, but",
    "--min_side=999": "no image of --images is kept (1 unreadable, 1 animated, 28 too",
    "--near_bits=4": "finished ingest with other settings: near_bits 6, now 4",
  }
  commands = []
  for mistake in mistakes:
    out = made if "near_bits" in mistake else tmp_path / "o"
    commands.append(["ingest", *command(data, out, *IN_MEMORY, mistake)[3:]])
  result = subprocess.run(
    [sys.executable, "-c", MISTAKES, json.dumps(commands)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  lines = result.stdout.splitlines()
  for line, said in zip(lines, mistakes.values(), strict=True):
    assert said in line
  assert not list(tmp_path.iterdir())
