"""A file is as it was, or as it should be; and nobody writes into another's."""

import contextlib
import json
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from dinojax import durable, errors


def differences(there, now):
  """What differs but for "batch"."""
  return [
    f"{k}: {there[k]} to {now[k]}" for k in now if k != "batch" and there[k] != now[k]
  ]


def claim(out, **manifest):
  return durable.claim(out, manifest, differences=differences)


def names(folder):
  return {path.name for path in folder.iterdir()}


def test_a_file_has_its_name_only_when_it_is_written(tmp_path):
  out = tmp_path / "out"
  with durable.writing(out, out=out) as file:
    file.write(b"new")
    assert not out.exists()
  assert out.read_bytes() == b"new"
  assert names(tmp_path) == {"out"}


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
  out = tmp_path / "out"
  out.write_bytes(b"old")
  with (
    pytest.raises(errors.UserError, match=r"--out=.*/out cannot be written \(No space"),
    durable.writing(out, out=out) as file,
  ):
    file.write(b"half of the n")
    raise OSError(28, "No space left on device")
  assert out.read_bytes() == b"old"
  assert names(tmp_path) == {"out"}


def test_what_a_killed_process_left_is_swept_and_no_more(tmp_path):
  program = """
import os, pathlib, signal, sys
from dinojax import durable
out = pathlib.Path(sys.argv[1])
with durable.writing(out / "part", out=out) as file:
  file.write(b"half")
  os.kill(os.getpid(), signal.SIGKILL)
"""
  out = tmp_path / "features[1].x"
  out.mkdir()
  (tmp_path / ".features2.x.json.host-1.new").touch()
  subprocess.run([sys.executable, "-c", program, str(out)], check=False)
  assert names(out) == set()
  assert len(names(tmp_path)) == 3
  durable.sweep(out)
  assert names(tmp_path) == {"features[1].x", ".features2.x.json.host-1.new"}


def test_the_first_claim_counts_and_others_have_to_agree(tmp_path):
  out = tmp_path / "new" / "out"
  first = {"weights": "a", "size": (1, 2), "batch": 8}
  assert claim(out, **first)["size"] == [1, 2]
  assert claim(out, **first | {"batch": 16})["batch"] == 8
  with pytest.raises(errors.UserError, match=r"otherwise \(weights: a to b\); choose"):
    claim(out, **first | {"weights": "b"})
  assert names(out.parent) == {"out.json"}


def test_a_manifest_tells_whether_its_output_is_complete(tmp_path):
  out, path = tmp_path / "out", tmp_path / "out.json"
  claim(out, i=1)
  assert json.loads(path.read_text()) == {"i": 1, "complete": False}
  durable.declare(out, complete=True)
  assert json.loads(path.read_text()) == {"i": 1, "complete": True}
  before = path.stat()
  durable.declare(out, complete=True)
  assert path.stat().st_ino == before.st_ino, "written again"
  durable.declare(out, complete=False)
  assert not json.loads(path.read_text())["complete"]
  assert names(tmp_path) == {"out.json"}


def test_of_two_claims_at_once_the_first_one_counts(tmp_path, monkeypatch):
  out, temporary = tmp_path / "out", durable.temporary

  def overtaken(path):
    monkeypatch.undo()
    claim(out, i=1)
    return temporary(path)

  monkeypatch.setattr(durable, "temporary", overtaken)
  with pytest.raises(errors.UserError, match="i: 1 to 2"):
    claim(out, i=2)
  assert json.loads((tmp_path / "out.json").read_text())["i"] == 1
  assert names(tmp_path) == {"out.json"}


def test_what_this_command_has_not_made_is_not_written_to(tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  with pytest.raises(errors.UserError, match=r"exists without out.json"):
    claim(out)


def test_a_lock_keeps_another_process_waiting(tmp_path):
  out = tmp_path / "out"
  claim(out)
  program = f"""
import pathlib
from dinojax import durable
with durable.locked(pathlib.Path({str(out)!r})):
  print("mine", flush=True)
  input()
"""
  pipe = subprocess.PIPE
  process = subprocess.Popen(
    [sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True
  )
  assert process.stdout.readline() == "mine\n"
  timer = threading.Timer(0.3, process.communicate, ["\n"])
  began = time.monotonic()
  timer.start()
  with durable.locked(out):
    assert time.monotonic() - began >= 0.3
  timer.join()


def test_a_lock_holds_whatever_becomes_of_the_manifest_meanwhile(tmp_path):
  out = tmp_path / "out"
  claim(out)
  inside = threading.Event()

  def wait():
    with durable.locked(out):
      inside.set()

  waiting = threading.Thread(target=wait)
  with contextlib.ExitStack() as second:
    with durable.locked(out):
      waiting.start()
      time.sleep(0.1)
      durable.declare(out, complete=True)  # another file, which a third one locks
      second.enter_context(durable.locked(out))
    assert not inside.wait(0.2)
  assert inside.wait(10)
  waiting.join()


def test_a_place_that_cannot_be_written_to_is_the_users_error():
  with pytest.raises(errors.UserError, match="--out=/proc/no/out cannot be written"):
    claim(pathlib.Path("/proc/no/out"))
