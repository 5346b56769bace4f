"""A checkpoint restores what was saved, on any mesh, or says that it cannot."""

import errno
import json
import logging
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import children
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dinojax import checkpoint, errors
from dinojax.runtime import workdir

CONFIG = {"workdir": "runs/a", "seed": 0, "backbone": {"depth": 12, "sizes": (1, 2)}}


def mesh_of(devices):
  return Mesh(np.array(jax.devices()[:devices]).reshape(1, -1), ("data", "fsdp"))


def make_state(seed, devices=8):
  """A state with a sharded matrix, replicated vectors, scalars and empty nodes."""
  rng = np.random.default_rng(seed)
  params = {
    "matrix": rng.normal(size=(8, 4096)).astype(np.float32),
    "bias": rng.normal(size=5).astype(np.float32),
  }
  state = {
    "step": np.int32(seed),
    "student": params,
    "opt_state": optax.adamw(1e-3).init(params),
    "centers": {},
  }
  return jax.device_put(jax.tree.map(jnp.asarray, state), shardings(state, devices))


def shardings(state, devices):
  mesh = mesh_of(devices)
  return jax.tree.map(
    lambda x: (
      NamedSharding(mesh, PartitionSpec("fsdp" if np.ndim(x) == 2 else None))
      if np.ndim(x)
      else NamedSharding(mesh, PartitionSpec())
    ),
    state,
  )


def abstract(state, devices=8):
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    shardings(state, devices),
  )


def open_run(folder, every=10, keep_last=5, keep_best=0):
  return checkpoint.Checkpoints(
    str(folder), every=every, keep_last=keep_last, keep_best=keep_best
  )


def record_of(step):
  return {"step": step, "data_fingerprint": ["f"], "config": CONFIG}


def save_all(folder, steps):
  run = open_run(folder)
  for step in steps:
    assert run.save(step, make_state(step), record_of(step))
  run.close()


def restore(folder, devices=8):
  run = open_run(folder)
  restored = run.restore(abstract(make_state(0), devices), check=lambda record: None)
  run.close()
  return restored


def assert_equal(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def steps_on_disk(folder):
  return sorted(
    int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit()
  )


def largest_file(folder):
  files = [path for path in folder.rglob("*") if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(("saved_on", "restored_on"), [(8, 1), (8, 4), (1, 8), (4, 8)])
def test_a_state_restores_bit_for_bit_on_another_mesh(tmp_path, saved_on, restored_on):
  run = open_run(tmp_path)
  run.save(10, make_state(10, saved_on), record_of(10))
  run.close()
  state, record = restore(tmp_path, restored_on)
  assert_equal(state, make_state(10))
  matrix = state["student"]["matrix"]
  assert matrix.sharding.num_devices == restored_on
  assert matrix.addressable_shards[0].data.shape == (8 // restored_on, 4096)
  assert record["step"] == 10
  assert record["data_fingerprint"] == ["f"]


def test_a_new_workdir_has_nothing_to_restore(tmp_path):
  assert restore(tmp_path) is None


def test_only_every_nth_step_is_saved_unless_forced_and_none_twice(tmp_path):
  run = open_run(tmp_path, every=10)
  saved = [run.save(step, make_state(0), record_of(step)) for step in (5, 10, 10, 15)]
  assert saved == [False, True, False, False]
  assert run.save(17, make_state(0), record_of(17), force=True)
  assert not run.save(17, make_state(0), record_of(17), force=True)
  run.close()
  assert steps_on_disk(tmp_path) == [10, 17]


def test_donating_the_state_after_save_does_not_change_what_is_written(tmp_path):
  mesh = mesh_of(8)
  rng = np.random.default_rng(0)
  sharded = NamedSharding(mesh, PartitionSpec("fsdp"))
  whole = NamedSharding(mesh, PartitionSpec())
  values = {f"w{i}": rng.normal(size=(64, 2**14)).astype(np.float32) for i in range(8)}
  layout = {name: whole if name == "w0" else sharded for name in values}
  update = jax.jit(
    lambda state: jax.tree.map(lambda x: x * 0.5 + 1.0, state), donate_argnums=0
  )
  fresh = jax.device_put(values, layout)
  state = update(fresh)
  assert fresh["w1"].is_deleted()  # so `update` does overwrite what it is given
  run = open_run(tmp_path, every=1)
  wanted = {}
  for step in (1, 2):
    wanted[step] = jax.tree.map(lambda x: np.array(x, copy=True), state)
    run.save(step, state, record_of(step))
    for _ in range(20):
      state = update(state)
  shapes = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, layout
  )
  run.close()
  for step in (2, 1):
    run = open_run(tmp_path, every=1)
    restored, record = run.restore(shapes, check=lambda record: None)
    run.close()
    assert record["step"] == step
    assert_equal(restored, wanted[step])
    shutil.rmtree(tmp_path / "checkpoints" / str(step))


def test_the_last_are_kept_and_the_best_besides(tmp_path):
  run = open_run(tmp_path, every=1, keep_last=2, keep_best=1)
  top1 = {2: 0.9, 4: 0.5, 6: 0.9, 7: 0.1}  # the other checkpoints are not rated
  for step in range(1, 10):
    metrics = (
      {"knn_top1_k10": top1[step], "knn_top1_k20": 0.0} if step in top1 else None
    )
    run.save(step, make_state(step), record_of(step), metrics=metrics)
  run.close()
  assert steps_on_disk(tmp_path) == [6, 8, 9]
  # The rating outlives the process.
  run = open_run(tmp_path, every=1, keep_last=1, keep_best=1)
  run.save(10, make_state(10), record_of(10), metrics={"knn_top1_k10": 0.8})
  run.close()
  assert steps_on_disk(tmp_path) == [6, 10]


def test_named_steps_are_kept_whatever_comes_later(tmp_path):
  options = dict(every=1, keep_last=1, keep_best=0, keep_steps=(2, 5))
  run = checkpoint.Checkpoints(str(tmp_path), **options)
  for step in range(1, 8):
    run.save(step, make_state(step), record_of(step))
  run.close()
  assert steps_on_disk(tmp_path) == [2, 5, 7]


def test_an_unreadable_record_hides_the_rating_and_nothing_else(tmp_path):
  run = open_run(tmp_path, every=1, keep_last=2, keep_best=1)
  for step in (1, 2):
    run.save(step, make_state(step), record_of(step), metrics={"knn_top1_k10": 0.5})
  run.close()
  (tmp_path / "checkpoints/2/record/metadata").write_bytes(b'{"step": 2')
  assert restore(tmp_path)[1]["step"] == 1


def truncate(folder):
  path = largest_file(folder)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero_a_page(folder):
  path = largest_file(folder)
  content = bytearray(path.read_bytes())
  middle = len(content) // 2
  content[middle : middle + 512] = bytes(512)
  path.write_bytes(bytes(content))


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def rewrite_record(change):
  """Damage to what the record says, with the file still in order."""

  def damage(folder):
    path = folder / "record" / "metadata"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))

  return damage


def without(name):
  return rewrite_record(lambda r: {k: v for k, v in r.items() if k != name})


DAMAGES = {
  "a record without checksums": without("checksums"),
  "a record without a config": without("config"),
  "a record without fingerprints": without("data_fingerprint"),
  "a record that is a list": rewrite_record(lambda record: [record]),
  "a record that is a number": rewrite_record(lambda record: 7),
  "checksums that are a list": rewrite_record(lambda r: {**r, "checksums": [1]}),
  "the record of another step": rewrite_record(lambda r: {**r, "step": 10}),
  "a data file cut in half": truncate,
  "a page of zeros": zero_a_page,
  "a data file gone": lambda folder: largest_file(folder).unlink(),
  "the manifest gone": lambda folder: (folder / "state/manifest.ocdbt").unlink(),
  "the record gone": lambda folder: shutil.rmtree(folder / "record"),
  "the state gone": lambda folder: shutil.rmtree(folder / "state"),
  "an empty folder": empty,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
  tmp_path, damage, caplog, capfd
):
  save_all(tmp_path, [10, 20])
  DAMAGES[damage](tmp_path / "checkpoints" / "20")
  with caplog.at_level(logging.WARNING):
    state, record = restore(tmp_path)
  assert_equal(state, make_state(10))
  assert record["step"] == 10
  (line,) = [entry.getMessage() for entry in caplog.records]
  assert line.startswith("checkpoint 20 cannot be read (")
  assert "from checkpoint 10" in line
  assert "\n" not in line
  assert "Traceback" not in capfd.readouterr().err
  # The damaged one stays, out of the way, and its step can be saved again.
  assert (tmp_path / "checkpoints" / "damaged-20-1").is_dir()
  save_all(tmp_path, [20])
  assert restore(tmp_path)[1]["step"] == 20


def test_a_copy_under_another_number_is_set_aside_and_its_step_trained(tmp_path):
  save_all(tmp_path, [10])
  shutil.copytree(tmp_path / "checkpoints/10", tmp_path / "checkpoints/20")
  assert restore(tmp_path)[1]["step"] == 10
  save_all(tmp_path, [20])
  assert_equal(restore(tmp_path)[0], make_state(20))


@flax.struct.dataclass
class State:
  step: jax.Array
  student: dict
  opt_state: tuple
  centers: dict


@flax.struct.dataclass
class LaterState(State):
  gram: dict | None = None


def test_a_state_with_a_new_optional_field_restores_from_one_without_it(tmp_path):
  before = State(**make_state(10))
  run = open_run(tmp_path)
  run.save(10, before, record_of(10))
  run.save(20, LaterState(**make_state(20)), record_of(20))
  run.close()
  for step in (20, 10):
    run = open_run(tmp_path)
    state, _ = run.restore(abstract_later(make_state(0)), check=lambda record: None)
    run.close()
    assert state.gram is None
    assert_equal(state, LaterState(**make_state(step)))
    shutil.rmtree(tmp_path / "checkpoints" / str(step))


def test_a_new_field_that_is_set_is_saved_and_restored(tmp_path):
  values = make_state(10)
  later = LaterState(**values, gram=values["student"])
  run = open_run(tmp_path)
  run.save(10, later, record_of(10))
  run.close()
  run = open_run(tmp_path)
  state, _ = run.restore(abstract_later(values), check=lambda record: None)
  run.close()
  assert_equal(state, later)


def abstract_later(values):
  return LaterState(**abstract({**values, "gram": values["student"]}))


def test_a_step_damaged_twice_is_set_aside_twice(tmp_path):
  save_all(tmp_path, [10, 20])
  for _ in range(2):
    empty(tmp_path / "checkpoints" / "20")
    assert restore(tmp_path)[1]["step"] == 10
    save_all(tmp_path, [20])
  names = sorted(path.name for path in (tmp_path / "checkpoints").glob("damaged*"))
  assert names == ["damaged-20-1", "damaged-20-2"]


def test_a_checkpoint_out_of_reach_is_no_damage_and_worth_a_restart(
  tmp_path, monkeypatch
):
  save_all(tmp_path, [10, 20])

  def fail(*_, **__):
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

  monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", fail)
  with pytest.raises(errors.TemporaryError, match="Stale file handle"):
    restore(tmp_path)
  assert sorted(x.name for x in (tmp_path / "checkpoints").iterdir()) == ["10", "20"]


def test_a_save_on_a_failed_disk_is_worth_a_restart(tmp_path, monkeypatch):
  run = open_run(tmp_path)

  def fail(*_, **__):
    raise ValueError("writing failed [OS error 5: Input/output error]")

  monkeypatch.setattr(run._manager, "save", fail)
  with pytest.raises(errors.TemporaryError, match="cannot write checkpoint 10 to"):
    run.save(10, make_state(10), record_of(10))
  run.close()


def test_a_half_written_checkpoint_is_not_one(tmp_path):
  save_all(tmp_path, [10, 20])
  folder = tmp_path / "checkpoints"
  (folder / "20").rename(folder / "30.orbax-checkpoint-tmp")
  assert restore(tmp_path)[1]["step"] == 10
  save_all(tmp_path, [20])
  assert sorted(path.name for path in folder.iterdir()) == ["10", "20"]


def test_when_no_checkpoint_is_readable_the_run_stops_and_touches_none(tmp_path):
  save_all(tmp_path, [10, 20])
  for step in ("10", "20"):
    truncate(tmp_path / "checkpoints" / step)
  with pytest.raises(errors.UserError, match=r"none of the checkpoints \[10, 20\]"):
    restore(tmp_path)
  assert steps_on_disk(tmp_path) == [10, 20]


def test_another_network_is_not_taken_for_damage(tmp_path):
  save_all(tmp_path, [10])
  run = open_run(tmp_path)
  other = {**CONFIG, "seed": 1}
  with pytest.raises(errors.UserError, match=r"config.seed: 0 in the workdir, 1 now"):
    run.restore(
      {"step": jax.ShapeDtypeStruct((), jnp.int32)},
      check=lambda record: workdir.check_same_run(
        record, config=other, data_fingerprint=["f"], free=()
      ),
    )
  run.close()
  assert steps_on_disk(tmp_path) == [10]


UNWRITABLE = """
import resource, sys
sys.path[:0] = [{root!r}, {tests!r}]
import checkpoint_test, pathlib
from dinojax import errors
folder = pathlib.Path(sys.argv[1], "unmakeable")
run = checkpoint_test.open_run(folder)
run.save(10, checkpoint_test.make_state(10), checkpoint_test.record_of(10))
run.wait()
(folder / "checkpoints").rename(folder / "moved")
(folder / "checkpoints").touch()
for step in (20, 30):
  try:
    run.save(step, checkpoint_test.make_state(step), checkpoint_test.record_of(step))
    run.close()
  except errors.UserError as error:
    print("USER ERROR:", error)
try:
  checkpoint_test.open_run(folder)
except errors.UserError as error:
  print("USER ERROR:", error)

workdir = pathlib.Path(sys.argv[1], "full")
run = checkpoint_test.open_run(workdir, keep_last=1)
run.save(10, checkpoint_test.make_state(10), checkpoint_test.record_of(10))
run.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
  run.save(20, checkpoint_test.make_state(20), checkpoint_test.record_of(20))
  run.close()
except errors.UserError as error:
  print("USER ERROR:", error)
"""


@pytest.fixture(scope="module")
def unwritable(tmp_path_factory):
  """Folder and lines of a process that could not write; it ends within two minutes."""
  tests, folder = pathlib.Path(__file__).parent, tmp_path_factory.mktemp("unwritable")
  script = UNWRITABLE.format(root=str(tests.parent), tests=str(tests))
  done = subprocess.run(
    [sys.executable, "-c", script, str(folder)],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  assert "Traceback" not in done.stderr
  lines = done.stdout.splitlines()
  assert len(lines) == 4, lines
  return folder, lines


@pytest.mark.process
def test_a_folder_that_cannot_be_made_is_one_line_and_the_process_ends(unwritable):
  lines = unwritable[1][:3]
  for step, line in zip((" 20", " 30", ""), lines, strict=True):
    assert line.startswith(f"USER ERROR: cannot write checkpoint{step} to")
    assert "checkpoints" in line
  assert all("the last good one is 10" in line for line in lines[:2])


@pytest.mark.process
def test_a_save_that_finds_no_room_is_one_line_and_costs_no_older_checkpoint(
  unwritable,
):
  folder, lines = unwritable
  assert lines[3].startswith("USER ERROR: cannot write checkpoint 20 to")
  assert "File too large" in lines[3]
  assert "the last good one is 10" in lines[3]
  assert restore(folder / "full")[1]["step"] == 10


TWO_PROCESSES = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import jax
jax.distributed.initialize(
  "localhost:" + sys.argv[2], 2, int(sys.argv[3]),
  cluster_detection_method="deactivate",
)
import checkpoint_test, numpy as np, pathlib
from jax.experimental import multihost_utils
workdir = pathlib.Path(sys.argv[1])
checkpoint_test.save_all(workdir, [10, 20])
multihost_utils.sync_global_devices("saved")
if jax.process_index() == 1:
  checkpoint_test.truncate(workdir / "checkpoints" / "20/state/ocdbt.process_1")
multihost_utils.sync_global_devices("damaged")
state, record = checkpoint_test.restore(workdir)
shards = state["student"]["matrix"].addressable_shards
wanted = np.random.default_rng(record["step"]).normal(size=(8, 4096))
for shard in shards:
  np.testing.assert_array_equal(shard.data, wanted.astype(np.float32)[shard.index])
print("restored", record["step"])
"""


def run_two_processes(tmp_path):
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = str(probe.getsockname()[1])
  tests = pathlib.Path(__file__).parent
  script = TWO_PROCESSES.format(root=str(tests.parent), tests=str(tests))
  command = [sys.executable, "-c", script, str(tmp_path), port]
  processes = [
    subprocess.Popen(
      [*command, str(i)],
      env=children.environment(4),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  try:
    results = [process.communicate(timeout=120) for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0], results
  return results


@pytest.mark.process
def test_two_processes_agree_on_the_checkpoint_when_one_cannot_read_the_newest(
  tmp_path,
):
  results = run_two_processes(tmp_path)
  assert [out.splitlines()[-1] for out, _ in results] == ["restored 10"] * 2
  warnings = [error.count("checkpoint 20 cannot be read") for _, error in results]
  assert warnings == [1, 0]
  assert steps_on_disk(tmp_path) == [10]
