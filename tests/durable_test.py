"""Files are written atomically, and nobody writes into another's output."""

import contextlib
import errno
import functools
import json
import os
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


def open_manifest(out, **manifest):
  return durable.open_manifest(out, manifest, differences=differences)


def names(folder):
  return {path.name for path in folder.iterdir()}


def test_a_file_has_its_name_only_when_it_is_written(tmp_path):
  out = tmp_path / "out"
  with durable.atomic_write(out, out=out) as file:
    file.write(b"new")
    assert not out.exists()
  assert out.read_bytes() == b"new"
  assert names(tmp_path) == {"out"}


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
  out = tmp_path / "out"
  out.write_bytes(b"old")
  with (
    pytest.raises(errors.UserError, match=r"--out=.*/out cannot be written \(No space"),
    durable.atomic_write(out, out=out) as file,
  ):
    file.write(b"half of the n")
    raise OSError(28, "No space left on device")
  assert out.read_bytes() == b"old"
  assert names(tmp_path) == {"out"}


def test_leftovers_of_a_killed_process_are_removed_and_no_more(tmp_path):
  program = """
import os, pathlib, signal, sys
from dinojax import durable
out = pathlib.Path(sys.argv[1])
with durable.atomic_write(out / "part", out=out) as file:
  file.write(b"half")
  os.kill(os.getpid(), signal.SIGKILL)
"""
  out = tmp_path / "features[1].x"
  out.mkdir()
  (tmp_path / ".features2.x.json.host-1.new").touch()
  subprocess.run([sys.executable, "-c", program, str(out)], check=False)
  assert names(out) == set()
  assert len(names(tmp_path)) == 3
  durable.remove_leftovers(out)
  assert names(tmp_path) == {"features[1].x", ".features2.x.json.host-1.new"}


def test_the_first_manifest_counts_and_others_have_to_agree(tmp_path):
  out = tmp_path / "new" / "out"
  first = {"weights": "a", "size": (1, 2), "batch": 8}
  assert open_manifest(out, **first)["size"] == [1, 2]
  assert open_manifest(out, **first | {"batch": 16})["batch"] == 8
  with pytest.raises(
    errors.UserError, match=r"begun with other settings \(weights: a to b\); choose"
  ):
    open_manifest(out, **first | {"weights": "b"})
  assert names(out.parent) == {"out.json"}


def test_a_manifest_says_whether_its_output_is_complete(tmp_path):
  out, path = tmp_path / "out", tmp_path / "out.json"
  open_manifest(out, i=1)
  assert json.loads(path.read_text()) == {"i": 1, "complete": False}
  durable.set_complete(out, complete=True)
  assert json.loads(path.read_text()) == {"i": 1, "complete": True}
  before = path.stat()
  durable.set_complete(out, complete=True)
  assert path.stat().st_ino == before.st_ino, "written again"
  durable.set_complete(out, complete=False)
  assert not json.loads(path.read_text())["complete"]
  assert names(tmp_path) == {"out.json"}


def test_of_two_manifests_at_once_the_first_one_counts(tmp_path, monkeypatch):
  out, temporary = tmp_path / "out", durable.temporary_path

  def overtaken(path):
    monkeypatch.undo()
    open_manifest(out, i=1)
    return temporary(path)

  monkeypatch.setattr(durable, "temporary_path", overtaken)
  with pytest.raises(errors.UserError, match="i: 1 to 2"):
    open_manifest(out, i=2)
  assert json.loads((tmp_path / "out.json").read_text())["i"] == 1
  assert names(tmp_path) == {"out.json"}


def test_what_this_command_has_not_made_is_not_written_to(tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  with pytest.raises(errors.UserError, match=r"exists without out.json"):
    open_manifest(out)


def test_a_lock_keeps_another_process_waiting(tmp_path):
  out = tmp_path / "out"
  open_manifest(out)
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
  open_manifest(out)
  inside = threading.Event()

  def wait():
    with durable.locked(out):
      inside.set()

  waiting = threading.Thread(target=wait)
  with contextlib.ExitStack() as second:
    with durable.locked(out):
      waiting.start()
      time.sleep(0.1)
      durable.set_complete(out, complete=True)  # another file, which a third one locks
      second.enter_context(durable.locked(out))
    assert not inside.wait(0.2)
  assert inside.wait(10)
  waiting.join()


def test_a_place_that_cannot_be_written_to_is_the_users_error():
  with pytest.raises(errors.UserError, match="--out=/proc/no/out cannot be written"):
    open_manifest(pathlib.Path("/proc/no/out"))


@pytest.mark.parametrize(
  ("number", "way_out"),
  [
    (errno.ENOSPC, "make room there"),
    (errno.EDQUOT, "raise the quota"),
    (errno.EFBIG, "ulimit -f"),
    (errno.EACCES, "let this user write there"),
    (errno.EROFS, "mount it writable"),
    (errno.EIO, "see to that"),
  ],
)
def test_only_a_full_disk_asks_for_room(number, way_out):
  out = pathlib.Path("out")
  with pytest.raises(errors.UserError) as raised, durable.os_errors_as_user_errors(out):
    raise OSError(number, os.strerror(number))
  message = str(raised.value)
  assert f"({os.strerror(number)});" in message and way_out in message
  assert raised.value.status == (75 if number == errno.EIO else 1)
  assert ("make room" in message) == (number in (errno.ENOSPC, errno.EDQUOT))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_manifest_is_the_users_to_remove(tmp_path, content):
  out = tmp_path / "out"
  durable.manifest_path(out).write_bytes(content)
  with pytest.raises(errors.UserError, match=r"out.json, .* is damaged; remove both"):
    open_manifest(out)


def test_a_file_that_cannot_be_written_is_refused_before_any_work(tmp_path):
  check = functools.partial(durable.check_file, flag="--json", example="plan.json")
  check(None)
  check(str(tmp_path / "new.json"))
  for path, reason in (
    (tmp_path, "it is a folder; give a file, such as plan.json"),
    (tmp_path / "no" / "r.json", f"{tmp_path}/no is no folder; make it first"),
  ):
    with pytest.raises(errors.UserError, match=f"--json={path} cannot .* {reason}"):
      check(str(path))


def test_json_of_a_flag_is_there_as_a_whole_or_not_at_all(tmp_path):
  path = tmp_path / "r.json"
  durable.write_json(str(path), {"a": 1}, flag="--json")
  with pytest.raises(ValueError, match="not JSON compliant"):
    durable.write_json(str(path), {"a": float("nan")}, flag="--json")
  assert json.loads(path.read_text()) == {"a": 1}
  assert list(tmp_path.iterdir()) == [path]
  with pytest.raises(errors.UserError, match="--json=/proc/no/x cannot be written: No"):
    durable.write_json("/proc/no/x", {}, flag="--json")
