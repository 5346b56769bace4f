"""One process at a time owns an output, and one that is gone blocks nobody."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from dinojax import errors
from dinojax.runtime import ownership

ROOT = pathlib.Path(__file__).parents[2]
LABEL = "--out=here"
OWN = """
import pathlib, sys
from dinojax.runtime import ownership
try:
  with ownership.owned(pathlib.Path(sys.argv[1]), "out", label="--out=here"):
    print("mine", flush=True)
    sys.stdin.readline()
except ownership.TakenError as error:
  print(error, flush=True)
"""


def start(folder):
  """A process that prints what comes of it, and owns the output until a line comes."""
  pipe = subprocess.PIPE
  return subprocess.Popen(
    [sys.executable, "-c", OWN, str(folder)],
    **dict(cwd=ROOT, stdin=pipe, stdout=pipe, text=True),
  )


def own(folder, share=(0, 1)):
  return ownership.owned(folder, "out", label=LABEL, share=share)


def is_refused(folder, **options):
  try:
    with own(folder, **options):
      return False
  except ownership.TakenError:
    return True


def left_by_a_killed_process(folder):
  process = start(folder)
  assert process.stdout.readline() == "mine\n"
  process.kill()
  process.communicate()
  (path,) = folder.iterdir()
  return path


def change(path, *, age=0, **values):
  """Has an owner file name another owner, last touched so many seconds ago."""
  path.write_text(json.dumps(json.loads(path.read_text()) | values))
  stamp = path.stat().st_mtime - age
  os.utime(path, (stamp, stamp))


def test_the_second_one_is_refused_by_host_process_and_time_until_the_first_ends(
  tmp_path,
):
  first = start(tmp_path)
  assert first.stdout.readline() == "mine\n"
  with pytest.raises(ownership.TakenError) as raised, own(tmp_path):
    pass
  owner = rf"process {first.pid} on {re.escape(socket.gethostname())}"
  since = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
  assert re.match(f"{LABEL} is in use by {owner} {since}; wait", str(raised.value))
  first.communicate("\n")
  with own(tmp_path) as claim:
    claim.check()
  assert not list(tmp_path.iterdir())


def test_a_killed_process_blocks_nobody(tmp_path):
  left_by_a_killed_process(tmp_path)
  assert not is_refused(tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_process_that_nobody_has_buried_yet_counts_as_gone(tmp_path):
  process = start(tmp_path)
  assert process.stdout.readline() == "mine\n"
  process.send_signal(signal.SIGKILL)
  os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
  assert not is_refused(tmp_path)
  process.communicate()


def test_another_process_with_the_number_of_a_killed_one_blocks_nobody(tmp_path):
  change(left_by_a_killed_process(tmp_path), pid=os.getpid())
  assert not is_refused(tmp_path)


def test_a_stopped_heartbeat_means_death_on_another_host(tmp_path, monkeypatch):
  path = left_by_a_killed_process(tmp_path)
  change(path, host="b", place="b", pid=os.getpid(), age=ownership.STALE + 1)
  assert not is_refused(tmp_path), "long dead, so at once"
  monkeypatch.setattr(ownership, "STALE", 0.3)
  monkeypatch.setattr(ownership, "POLL", 0.05)
  change(left_by_a_killed_process(tmp_path), host="b", place="b")
  assert not is_refused(tmp_path), "dead for less than that: watched for so long"


def test_a_live_owner_on_another_host_is_known_by_its_heartbeat(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(ownership, "BEAT", 0.05)
  monkeypatch.setattr(ownership, "YIELD", 0)
  monkeypatch.setattr(ownership, "POLL", 0.1)
  with own(tmp_path):
    (path,) = tmp_path.iterdir()
    change(path, host="far\x1b", place="far", pid=7)
    refused = pytest.raises(ownership.TakenError, match=r"process 7 on far.* since")
    with refused, own(tmp_path):
      pass
  assert r"was in use by process 7 on far\x1b since" in capsys.readouterr().err


def test_a_copy_of_a_run_is_not_in_use_where_the_run_is(tmp_path, monkeypatch):
  monkeypatch.setattr(ownership, "STALE", 0.3)
  run, copy = tmp_path / "run", tmp_path / "copy"
  with own(run):
    (path,) = run.iterdir()
    copy.mkdir()
    (copy / path.name).write_bytes(path.read_bytes())
    assert not is_refused(copy)
    assert is_refused(run)


def test_damaged_owner_files_block_until_they_are_old(tmp_path, monkeypatch):
  monkeypatch.setattr(ownership, "STALE", 0.3)
  path = left_by_a_killed_process(tmp_path)
  values = json.loads(path.read_text())
  path.write_text("")
  for i, content in enumerate(("{", "[1]", "[" * 100_000, "\0")):
    (tmp_path / f".out.owner-{i}").write_text(content)
  wrong = {"since": ["x", 1e300, None], "pid": [[], "a"], "share": [1, [1], [1, 2, 3]]}
  for name, contents in wrong.items():
    for i, content in enumerate(contents):
      text = json.dumps(values | {name: content})
      (tmp_path / f".out.owner-{name}-{i}").write_text(text)
  assert not is_refused(tmp_path)
  assert not list(tmp_path.iterdir())


def test_of_many_that_start_at_once_exactly_one_is_the_owner(tmp_path):
  processes = [start(tmp_path) for _ in range(6)]
  lines = [process.stdout.readline() for process in processes]
  for process in processes:
    process.communicate("\n")
  assert lines.count("mine\n") == 1
  assert sum("is in use by process" in line for line in lines) == 5


def test_of_two_that_see_each_other_the_earlier_waits_and_the_later_withdraws(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(ownership, "YIELD", 60)
  monkeypatch.setattr(ownership, "POLL", 0.05)
  with own(tmp_path):
    (path,) = tmp_path.iterdir()
    mine = json.loads(path.read_text())
  later = tmp_path / ".out.owner-later"
  later.write_text(json.dumps(mine | {"since": mine["since"] + 3600}))
  withdraws = threading.Timer(0.2, later.unlink)
  withdraws.start()
  assert not is_refused(tmp_path)
  withdraws.join()
  later.write_text(json.dumps(mine | {"since": mine["since"] - 3600}))
  assert is_refused(tmp_path)


def test_shares_of_one_output_go_side_by_side_and_other_divisions_do_not(tmp_path):
  with own(tmp_path, share=(0, 2)):
    assert not is_refused(tmp_path, share=(1, 2))
    assert is_refused(tmp_path, share=(0, 2))
    assert is_refused(tmp_path, share=(1, 3))
    assert is_refused(tmp_path)


def test_outputs_of_other_names_do_not_meet(tmp_path):
  with own(tmp_path), ownership.owned(tmp_path, "ou[t]", label=LABEL):
    assert is_refused(tmp_path)


def test_an_output_that_was_removed_is_noticed(tmp_path):
  with own(tmp_path) as claim:
    (path,) = tmp_path.iterdir()
    path.unlink()
    with pytest.raises(errors.UserError, match=f"{LABEL} was removed, or taken over"):
      claim.check()


def test_a_place_that_cannot_be_written_to_is_the_users_error():
  refused = pytest.raises(errors.UserError, match=f"{LABEL} cannot be written")
  with refused, own(pathlib.Path("/proc/no")):
    pass
