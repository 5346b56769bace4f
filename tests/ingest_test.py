"""Ingest by its command line: kept and dropped images, equal bytes, ends and errors."""

import contextlib
import csv
import json
import signal
import subprocess
import sys
import time

import children
import ingest_session
import jax
import numpy as np
import pictures
import psutil
import pytest
import tensorflow_datasets as tfds
from absl import flags

from dinojax import errors
from dinojax.data import images, mixture, sources, train_batches
from dinojax.weights import formats, model

pytestmark = pytest.mark.process
ARCHITECTURE = model.DEFAULTS | dict(
  **dict(patch_size=4, pos_grid=4, width=16, depth=1, heads=2),
  **dict(ffn="mlp", registers=0, pool="gap"),
)


@pytest.fixture(scope="module")
def session():
  with contextlib.closing(ingest_session.Session()) as running:
    yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  ingest_session.write_images(folder)
  return folder


@pytest.fixture(scope="module")
def made(session, data, tmp_path_factory):
  out = tmp_path_factory.mktemp("made") / "web" / "1.0.0"
  ended = session.ingest(*ingest_session.flags_of(data, out))
  assert ended.status == 0, ended.stderr
  return out


def start(data, out, *, processes):
  """The real command."""
  flags = [*ingest_session.flags_of(data, out), f"--direct_num_workers={processes}"]
  return subprocess.Popen(
    [sys.executable, "-m", "dinojax.ingest", *flags],
    **dict(cwd=ingest_session.ROOT, stderr=subprocess.PIPE, text=True),
  )


def contents(out):
  # The index that a reader leaves is hidden, and no part of it.
  names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
  return {name: (out / name).read_bytes() for name in names}


def wait_until(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def test_duplicates_and_damage_are_dropped_and_all_else_is_there_once(made, data):
  with open(made / "dropped.csv", newline="") as file:
    header, *rows = csv.reader(file)
  assert header == ["name", "reason", "detail", "matches"]
  tar = f"{data}/0.tar"
  photos = f"{data}/photos"
  dropped = {name: (reason, match) for name, reason, _, match in rows}
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
        rows=[
          train_batches.Row(
            pictures.corners, dict(views=2, grid=4, ratio_min=0.1, ratio_max=0.5)
          )
        ],
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


def test_training_sees_each_kept_record_once_an_epoch_on_any_hosts_and_workers(made):
  flags.FLAGS.mark_as_parsed()
  source = sources.open_source(f"arrayrecord:{made}/*.array_record*", field="x")
  batches = list(read(source, (0,)))
  for batch, alone in zip(read(source, (0, 2)), batches, strict=True):
    assert batch.keys() == alone.keys()
    for name, values in alone.items():
      np.testing.assert_array_equal(batch[name], values)
  kept = [images.decode(source[i]["image"])[:4, :4].tobytes() for i in range(20)]
  assert len(set(kept)) == 20
  seen = [crops[0].tobytes() for batch in batches for crops in batch["global_crops"]]
  assert sorted(seen[:20]) == sorted(seen[20:]) == sorted(kept)
  assert seen[:20] != seen[20:]


def test_manifest_and_report_count_everything(made, data):
  manifest = json.loads((made / "manifest.json").read_text())
  assert manifest["records"] == 20
  assert manifest["dropped"] == {
    **{"unreadable": 2, "animated": 1, "too small": 1, "too elongated": 1},
    **{"exact duplicate": 2, "near duplicate": 2, "in an excluded set": 1},
  }
  assert manifest["warnings"] == []
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
  assert len(warnings) == 2 and "left out: 1; give numbers" in warnings[1]
  report = (made / "report.html").read_text()
  assert classes in report
  assert report.count("data:image/jpeg") == 13  # two of each pair, and of 3 refused one
  assert "2 frames" in report and "64x9 pixels" in report


def test_the_same_command_again_changes_nothing(session, made, data):
  before = {path: path.stat().st_mtime_ns for path in made.parent.rglob("*")}
  ended = session.ingest(*ingest_session.flags_of(data, made))
  assert ended == (0, f"{made} is complete; nothing to do\n")
  assert {path: path.stat().st_mtime_ns for path in made.parent.rglob("*")} == before


def test_after_a_kill_and_a_full_disk_it_resumes_to_the_same_bytes(
  session, made, data, tmp_path
):
  out = tmp_path / "web" / "1.0.0"
  work = out.with_name("1.0.0.work")
  process = start(data, out, processes=1)
  wait_until(lambda: list(work.glob("scan/*.npy")))
  started = children.of(process.pid)
  assert started
  process.kill()
  process.communicate()
  children.wait_until_gone(started)
  # A shard is larger: array_record writes at least 64 KiB.
  full = session.ingest(*ingest_session.flags_of(data, out), limit=50_000)
  assert full.status == 1
  line = full.stderr.splitlines()[-1]
  assert line.startswith(f"dinojax: --out={out} cannot be written (File too large);")
  assert "Traceback" not in full.stderr
  assert not out.exists()
  assert not list(out.parent.rglob("*.new"))
  last = start(data, out, processes=2)
  _, output = last.communicate()
  assert last.returncode == 0, output
  assert contents(out) == contents(made)
  assert {path.name for path in out.parent.iterdir()} == {"1.0.0", "1.0.0.json"}


def workers_of(process):
  """Python processes that tasks run in; Beam starts each by a shell."""
  found = psutil.Process(process.pid).children(recursive=True)
  return [child for child in found if "python" in child.name()]


def test_a_signal_ends_all_processes(data, tmp_path):
  before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in background jobs
  process = start(data, tmp_path / "o", processes=1)
  signal.signal(signal.SIGINT, before)
  wait_until(lambda: workers_of(process))
  for worker in workers_of(process):
    worker.suspend()  # so that its task never ends
  started = children.of(process.pid)
  process.send_signal(signal.SIGINT)
  _, output = process.communicate(timeout=60)
  assert process.returncode == 130
  assert "Traceback" not in output
  assert output.splitlines()[-1] == "dinojax: ended; the same command resumes"
  children.wait_until_gone(started)
  assert not (tmp_path / "o").exists()


def test_similar_embeddings_are_dropped_and_samples_are_even(session, data, tmp_path):
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
  ended = session.ingest(*ingest_session.flags_of(data, out), *flags, *more)
  assert ended.status == 0, ended.stderr
  manifest = json.loads((out / "manifest.json").read_text())
  assert manifest["records"] == 12
  dropped = manifest["dropped"]
  assert dropped["similar embedding"] >= 2
  assert sum(dropped.values()) + 12 == 30
  assert manifest["given"]["weights"]


def test_images_are_shrunk_to_a_shorter_side(session, data, tmp_path):
  out = tmp_path / "o"
  flags = ("--shorter_side=32", "--exact=off", "--near_bits=-1")
  ended = session.ingest(*ingest_session.flags_of(data, out), *flags)
  assert ended.status == 0, ended.stderr
  source = sources.open_source(f"arrayrecord:{out}/*.array_record*", field="x")
  sizes = {images.decode(source[i]["image"]).shape for i in range(len(source))}
  assert sizes == {(32, 32, 3)}


def test_odd_names_labels_and_sizes_complete_and_each_image_is_counted(
  session, tmp_path
):
  odd, keys = ingest_session.write_odd_images(tmp_path)
  root, out = tmp_path / odd, tmp_path / "o"
  ended = session.ingest(
    f"--images=folder:{root}",
    f"--images=tar:{root}/*.tar",
    f"--images=parquet:{root}/*.parquet",
    f"--out={out}",
  )
  assert ended.status == 0, ended.stderr
  assert "\x1b" not in ended.stderr
  manifest = json.loads((out / "manifest.json").read_text())
  assert (manifest["records"], manifest["dropped"]) == (8, {"unreadable": 3})
  assert [x["images"] for x in manifest["inputs"]] == [3, 5, 3]
  with open(out / "dropped.csv", encoding="utf-8", newline="") as file:
    details = {name: detail for name, _, detail, _ in csv.reader(file)}
  root = errors.printable(str(root))
  shown = errors.printable(odd)
  assert "cannot identify" in details[f"{root}/{shown}/broken\\x1b.png"]
  assert "over the limit of" in details[f"{root}/{shown}/huge.jpg"]
  assert details[f"{root}/0.tar:no.image"] == "zero bytes"
  builder = tfds.builder_from_directory(out)
  found = [(x["source"].decode(), x["label"]) for x in builder.as_data_source("train")]
  labels = dict(found)
  assert labels.pop(f"{root}/{shown}/{shown}.png") == 0
  in_tar = [labels.pop(f"{root}/0.tar:{errors.printable(key)}") for key in keys]
  assert in_tar == [-1, -1, 2, -1]
  assert list(labels.values()) == [-1, -1, 2]
  assert builder.info.features["label"].names == [shown, "0", "1"]
  report = (out / "report.html").read_text(encoding="utf-8")
  assert "\x1b" not in report and "<b>" not in report


def test_mistakes_take_one_line_and_leave_nothing(session, made, data, tmp_path):
  mistakes = {
    "--min_sid=3": "nor of Beam; did you mean --min_side?",
    "--quality=101": "--quality=101 must be within 1 and 95",
    "--max_aspect=0.5": "--max_aspect=0.5 must be at least 1, or 0",
    "--near_cosine=0.9": "--near_cosine needs --checkpoint=WEIGHTS",
    "--images=tar:/nowhere/*": '--images="tar:/nowhere/*" matches no file',
    f"--images=tar:{data}": f"is a folder; give tar:{data}/*.tar",
    f"--images=tar:{data}/test/*.jpg": "matches no tar file, but",
    "--min_side=999": "cat/00.png, is dropped as too small (64x64 pixels, under --min_",
    "--near_bits=4": "finished ingest with other settings: near_bits 6, now 4",
    "--out=/": "--out=/ must end in the name of a new folder",
    "--out=a\x1bb": "--out=a\\x1bb must be printable UTF-8",
  }
  for mistake, message in mistakes.items():
    out = made if "near_bits" in mistake else tmp_path / "o"
    ended = session.ingest(*ingest_session.flags_of(data, out), mistake)
    assert ended.status == 1
    assert message in ended.stderr.splitlines()[-1]
  assert not list(tmp_path.iterdir())
