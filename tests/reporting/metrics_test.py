"""What is logged is what happened, once, whatever ended the run before."""

import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import time

import numpy as np
from PIL import Image
from tensorboardX.proto import event_pb2

from dinojax.reporting import console, metrics

ROOT = str(pathlib.Path(__file__).parents[2])


def lines(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def write_steps(workdir, start_step, steps):
  writer = metrics.Writer(str(workdir), start_step=start_step)
  for step in steps:
    writer.write(step, {"loss": step / 3})
  writer.close()


def events(path):
  """Events of one file: length, its checksum, message, its checksum."""
  data, position = path.read_bytes(), 0
  while position < len(data):
    (length,) = struct.unpack_from("<Q", data, position)
    yield event_pb2.Event.FromString(data[position + 12 : position + 12 + length])
    position += length + 16


def test_a_float32_comes_back_from_the_file_with_every_bit(tmp_path):
  values = np.random.default_rng(0).normal(size=200).astype(np.float32)
  values[:3] = np.float32(1e-42), np.finfo(np.float32).max, np.float32(0.1)
  writer = metrics.Writer(str(tmp_path), start_step=0)
  writer.write(1, {f"v{i}": float(value) for i, value in enumerate(values)})
  writer.close()
  (line,) = lines(tmp_path)
  back = np.array([line[f"v{i}"] for i in range(200)], np.float32)
  np.testing.assert_array_equal(back.view(np.uint32), values.view(np.uint32))


def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path):
  for name in ("whole", "killed"):
    (tmp_path / name).mkdir()
  write_steps(tmp_path / "whole", 0, range(1, 11))
  write_steps(tmp_path / "killed", 0, range(1, 8))
  with (tmp_path / "killed/metrics.jsonl").open("a") as file:
    file.write('{"step": 8, "lo')  # cut off by the kill
  write_steps(tmp_path / "killed", 5, range(6, 11))
  whole, killed = (tmp_path / name / "metrics.jsonl" for name in ("whole", "killed"))
  assert killed.read_bytes() == whole.read_bytes()


def test_a_run_that_starts_anew_drops_all_that_was_logged(tmp_path):
  write_steps(tmp_path, 0, [1, 2])
  write_steps(tmp_path, 0, [1])
  assert lines(tmp_path) == [{"step": 1, "loss": 1 / 3}]


def test_both_files_reach_the_disk_now_and_then_and_when_asked(tmp_path, monkeypatch):
  synced, fsync = [], os.fsync

  def record(file):
    synced.append(os.fstat(file).st_ino)
    fsync(file)

  monkeypatch.setattr(os, "fsync", record)
  writer = metrics.Writer(str(tmp_path), start_step=0)
  paths = [tmp_path / "metrics.jsonl", *(tmp_path / "tensorboard").iterdir()]
  both = {path.stat().st_ino for path in paths}
  synced.clear()
  writer.write(1, {"loss": 0.5})
  assert synced == []  # for a mounted bucket, each is an upload of the whole file
  writer.sync()
  assert set(synced) == both
  synced.clear()
  monkeypatch.setattr(metrics, "SECONDS_BETWEEN_SYNCS", 0)
  writer.write(2, {"loss": 0.5})
  assert set(synced) == both
  assert [event.step for event in events(paths[1])][-1] == 2


ENDED = f"""
import os, pathlib, resource, signal, sys
sys.path.insert(0, {ROOT!r})
from dinojax import errors
from dinojax.reporting import console, metrics

full, killed = (pathlib.Path(sys.argv[1], name) for name in ("full", "killed"))
number = os.fork()
writer = metrics.Writer(str(full if number else killed), start_step=0)
if number == 0:
  for step in (1, 2, 3):
    writer.write(step, dict(loss=0.5))
  os.kill(os.getpid(), signal.SIGKILL)
_, status = os.waitpid(number, 0)
assert status == signal.SIGKILL, status
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, resource.RLIM_INFINITY))
try:
  for step in range(1000):
    writer.write(step, dict(loss=0.5))
except errors.UserError as error:
  print(error)
"""


def test_a_killed_process_has_left_every_line_and_a_full_disk_is_one_line(tmp_path):
  for name in ("full", "killed"):
    (tmp_path / name).mkdir()
  done = subprocess.run(
    [sys.executable, "-c", ENDED, str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=40,  # it does not hang
  )
  assert done.returncode == 0, done.stderr
  (line,) = done.stdout.splitlines()
  # Without a field: not every command that writes metrics has a config.
  where = f"{tmp_path}/full"
  assert line.startswith(f"cannot write metrics to {where} (File too large); make")
  assert "Traceback" not in done.stderr
  assert [line["step"] for line in lines(tmp_path / "killed")] == [1, 2, 3]


def test_tensorboard_gets_images_with_every_pixel(tmp_path):
  image = np.random.default_rng(0).integers(256, size=(5, 7, 3), dtype=np.uint8)
  writer = metrics.Writer(str(tmp_path), start_step=0)
  writer.write_images(3, {"a/b": image, "turned": image[:, ::-1]})
  writer.close()
  (path,) = (tmp_path / "tensorboard").iterdir()
  *_, event = events(path)
  assert event.step == 3
  first, second = event.summary.value
  assert (first.tag, first.image.width, first.image.height) == ("a/b", 7, 5)
  for value, wanted in ((first, image), (second, image[:, ::-1])):
    found = Image.open(io.BytesIO(value.image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(found), wanted)


def test_tensorboard_gets_every_scalar_and_drops_what_a_resumed_run_repeats(tmp_path):
  write_steps(tmp_path, 0, [1, 2, 3])
  time.sleep(1.1)  # event files are named by the second
  write_steps(tmp_path, 2, [3, 4])
  files = sorted((tmp_path / "tensorboard").iterdir())
  assert len(files) == 2
  first, second = ([*events(file)] for file in files)
  scalars = [
    [(e.step, v.tag, v.simple_value) for e in part for v in e.summary.value]
    for part in (first, second)
  ]
  loss = {step: float(np.float32(step / 3)) for step in range(1, 5)}
  assert scalars[0] == [(step, "loss", loss[step]) for step in (1, 2, 3)]
  assert scalars[1] == [(step, "loss", loss[step]) for step in (3, 4)]
  (restart,) = [e for e in second if e.session_log.status == 1]  # START
  assert restart.step == 3


def test_other_processes_than_the_first_write_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics.jax, "process_index", lambda: 1)
  write_steps(tmp_path, 0, [1])
  console.say("unheard")
  assert os.listdir(tmp_path) == []
