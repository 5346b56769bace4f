"""A run's checkpoint gives up its backbone, and nothing else is read for it."""

import contextlib
import errno
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from dinojax import assembly, backbone, checkpoint, checksums, errors, sharding, start
from dinojax.weights import formats, runs
from tests import tiny

SHAPES = {}  # abstract states of configs on meshes, which take a second each


def random_state(config, *, seed, mesh=None):
  """A training state of random numbers, and its abstract state; on a mesh, sharded."""
  mesh = mesh or sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
  if (key := (str(config), mesh)) not in SHAPES:
    SHAPES[key] = assembly.assemble(config, mesh).abstract_state
  shapes = SHAPES[key]
  rng = np.random.default_rng(seed)

  def fill(x):
    return jax.device_put(rng.normal(size=x.shape).astype(x.dtype), x.sharding)

  return jax.tree.map(fill, shapes), shapes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir with checkpoints of steps 3 and 7, and their states."""
  workdir, states = tmp_path_factory.mktemp("run"), {}
  config = tiny.config()
  with config.unlocked():
    config.backbone.update(width=64, depth=3)
  saver = checkpoint.Checkpoints(workdir, every=1, keep_last=9, keep_best=0)
  with contextlib.closing(saver):
    for step in (3, 7):
      states[step], _ = random_state(config, seed=step)
      record = {"step": step, "data_fingerprint": "f", "config": config.to_dict()}
      saver.save(step, states[step], record, force=True)
  return workdir, states, config


@pytest.mark.parametrize(("step", "shape"), [(None, None), (3, None), (None, (4, 2))])
def test_the_teachers_backbone_of_a_step_comes_back_on_any_mesh(run, shape, step):
  workdir, states, _ = run
  mesh = shape and sharding.make_mesh(data=shape[0], fsdp=shape[1])
  found = formats.read(str(workdir), step=step, mesh=mesh).params
  wanted = states[step or 7].teacher["backbone"]
  jax.tree.map(np.testing.assert_array_equal, found, {"backbone": wanted})
  kernel = found["backbone"]["blocks"]["mlp"]["w12"]["kernel"]
  if mesh:
    share = sharding.state_sharding(mesh, wanted)["blocks"]["mlp"]["w12"]["kernel"]
    assert kernel.sharding == share


def test_a_single_checkpoint_is_found_by_its_folder(run):
  workdir, states, _ = run
  found = formats.read(str(workdir / "checkpoints" / "3")).params["backbone"]
  wanted = states[3].teacher["backbone"]
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


def bytes_read():
  lines = pathlib.Path("/proc/self/io").read_text().splitlines()
  return int(lines[0].removeprefix("rchar: "))


def test_images_are_sized_as_for_k_nn_or_where_that_is_off_as_in_training(run):
  config = run[2].copy_and_resolve_references().unlock()
  config.knn.update(every=10, resize=70, crop=42)
  assert runs.image_sizes(config.to_dict()) == {"resize": 70, "crop": 42}
  config.knn.every, config.augment.global1.size = 0, 56
  assert runs.image_sizes(config.to_dict()) == {"resize": 64, "crop": 56}
  # What `convert` writes knows no more of a run than these sizes, or nothing.
  assert runs.image_sizes({"knn": {"resize": 9, "crop": 8}}) == {"resize": 9, "crop": 8}
  assert runs.image_sizes({"knn": {}}) == {}


def test_a_run_is_read_at_the_step_that_was_newest_and_says_which(run):
  workdir, *_ = run
  assert backbone.load(str(workdir)).run == (str(workdir), 7)
  assert backbone.load(str(workdir), step=3).run == (str(workdir), 3)
  folder = workdir / "checkpoints" / "3"
  assert backbone.load(str(folder)).run == (str(workdir), 3)


def test_only_the_backbones_bytes_are_read_from_disk(run):
  workdir, states, _ = run
  folder = runs.find(workdir, 7)
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
  before = bytes_read()
  formats.read(str(workdir))
  seen = bytes_read() - before
  backbone_size, state_size = size(states[7].teacher["backbone"]), size(states[7])
  assert state_size > 4 * backbone_size
  metadata = (folder / "state" / "_METADATA").stat().st_size
  assert 0.5 * backbone_size < seen < 1.2 * backbone_size + 4 * metadata


def test_a_copy_under_another_number_is_not_read_as_that_step(run, tmp_path):
  workdir, _, _ = run
  there = shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
  shutil.copytree(there / "3", there / "9")
  with pytest.raises(errors.UserError, match=r"/9 cannot .* is of step 3: a copy\); "):
    formats.read(str(tmp_path))
  formats.read(str(shutil.copytree(there / "3", tmp_path / "best")))


def test_a_checkpoint_out_of_reach_is_worth_a_restart(run, monkeypatch):
  workdir, _, _ = run

  def fail(*_, **__):
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

  monkeypatch.setattr(runs.ocp.JsonCheckpointHandler, "restore", fail)
  with pytest.raises(errors.TemporaryError, match="7 is out of reach"):
    formats.read(str(workdir))


def test_damage_is_told_with_the_way_out(run, tmp_path):
  workdir, _, _ = run
  shutil.copytree(workdir, tmp_path / "run")
  folder = tmp_path / "run" / "checkpoints" / "7" / "state"
  for file in folder.rglob("d/*"):
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    file.write_bytes(data)
  with pytest.raises(errors.UserError, match=r"7.*try an older"):
    formats.read(str(tmp_path / "run"))
  assert formats.read(str(tmp_path / "run"), step=3)


def cut(file):
  file.write_bytes(file.read_bytes()[:-20])


def replace(old, new):
  def change(file):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))

  return change


@pytest.mark.parametrize(
  "file, damage",
  [
    ("state/_METADATA", os.remove),  # FileNotFoundError
    ("state/_METADATA", cut),  # JSONDecodeError
    ("state/_METADATA", replace('"key_type"', '"kez_type"')),  # KeyError
    ("state/_sharding", replace("NamedSharding", "NamedShardink")),  # RuntimeError
    ("state/manifest.ocdbt", os.remove),  # TensorStore's ValueErrors
    ("state/manifest.ocdbt", cut),
    ("record/metadata", os.remove),
    ("record/metadata", cut),
    ("record/metadata", replace('"config"', '"confih"')),
    ("record/metadata", replace('"checksums"', '"sums"')),
    ("record/metadata", lambda file: file.write_text("[1]")),
    ("record/metadata", lambda file: file.write_text("[" * 10**5 + "]" * 10**5)),
    ("record/metadata", lambda file: file.write_text('{"config": 1, "checksums": []}')),
    ("state/_METADATA", lambda file: file.write_text("[1]")),
    ("state/_METADATA", lambda file: file.write_text('{"tree_metadata": [1]}')),
  ],
)
def test_every_kind_of_damage_is_one_line_that_names_the_checkpoint(
  run, tmp_path, file, damage
):
  workdir, _, _ = run
  folder = tmp_path / "checkpoints" / "7"
  shutil.copytree(workdir / "checkpoints" / "7", folder)
  damage(folder / file)
  with pytest.raises(errors.UserError, match=f"{folder}.* cannot be read") as caught:
    formats.read(str(tmp_path))
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "old, new, message",
  [
    ('"depth": 3', '"depth": "3"', "depth='3'; it must be a whole number from 1 to"),
    ('"depth": 3', '"depth": 4', "does not fit its architecture: backbone.blocks"),
    ('"heads": 2', '"heads": 0', "heads=0; it must be a whole number"),
    ('"heads": 2', '"heads": 5', "heads=5 must divide the 64 channels"),
    ('"ffn": "swiglu"', '"ffn": ["mlp"]', r"ffn=\['mlp'\]; it must be mlp or swiglu"),
    ('"backbone": {', '"backbone": [], "x": {', "its config has no backbone"),
  ],
)
def test_an_architecture_that_cannot_be_is_named(run, tmp_path, old, new, message):
  workdir, _, _ = run
  folder = tmp_path / "checkpoints" / "7"
  shutil.copytree(workdir / "checkpoints" / "7", folder)
  replace(old, new)(folder / "record" / "metadata")
  with pytest.raises(errors.UserError, match=f"{folder}.*{message}"):
    formats.read(str(tmp_path))


def test_a_mistake_of_ours_is_not_taken_for_damage(run):
  workdir, _, _ = run
  with pytest.raises(TypeError):
    runs.read(runs.find(workdir, 7), parts=None)


def test_a_changed_value_is_noticed_by_its_checksum(run, tmp_path):
  workdir, _, _ = run
  shutil.copytree(workdir, tmp_path / "run")
  record = next((tmp_path / "run/checkpoints/7/record").glob("metadata"))
  text = record.read_text()
  name = '"teacher.backbone.norm.scale": '
  assert name in text
  record.write_text(text.replace(name, name + "1"))
  with pytest.raises(errors.UserError, match=r"norm\.scale is not what was saved"):
    formats.read(str(tmp_path / "run"))


def test_what_is_not_there_is_told(run, tmp_path):
  workdir, _, _ = run
  with pytest.raises(errors.UserError, match=r"no checkpoint of step 5, only \[3, 7\]"):
    formats.read(str(workdir), step=5)
  os.makedirs(tmp_path / "new" / "checkpoints")
  with pytest.raises(errors.UserError, match="holds no checkpoint yet"):
    formats.read(str(tmp_path / "new"))


def test_the_fingerprint_is_of_the_weights_alone(run, tmp_path):
  workdir, _, _ = run
  formats.write(formats.read(str(workdir)), str(tmp_path / "copy"), "huggingface")
  mesh = sharding.make_mesh(data=4, fsdp=2)
  prints = [
    backbone.load(str(path), mesh=where, step=step).fingerprint
    for path, where, step in (
      (workdir, None, None),
      (workdir, mesh, None),
      (tmp_path / "copy", None, None),
      (workdir, None, 3),
    )
  ]
  assert len(set(prints[:3])) == 1
  assert prints[3] != prints[0]


def started_from(path, state, config):
  named = config.copy_and_resolve_references()
  with named.unlocked():
    named.init.backbone = path
  return start.from_weights(state, named)


def test_a_run_starts_from_weights_student_and_teacher_alike(run, tmp_path):
  workdir, states, config = run
  formats.write(formats.read(str(workdir)), str(tmp_path / "w.pth"), "released")
  mesh = sharding.make_mesh(data=4, fsdp=2)
  before, abstract = random_state(config, seed=0, mesh=mesh)
  state = started_from(str(tmp_path / "w.pth"), before, config)
  # Placed as the compiled step wants it, and nothing else of the state has changed.
  assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(
    lambda x: x.sharding, abstract
  )
  wanted = states[7].teacher["backbone"]
  replaced = (
    {**before.student, "backbone": wanted},
    {**before.teacher, "backbone": wanted},
  )
  wanted = before.replace(student=replaced[0], teacher=replaced[1])
  jax.tree.map(np.testing.assert_array_equal, state, wanted)


@pytest.mark.parametrize("host", [True, False])
def test_values_that_are_not_finite_are_counted_on_the_host_and_on_devices(
  monkeypatch, host
):
  monkeypatch.setattr(checksums, "is_on_host", lambda leaf: host)
  params = {"a": jax.device_put(np.float32([1, np.nan, -np.inf])), "b": np.ones(2)}
  assert runs._count_not_finite(params) == {"a": 2, "b": 0}


def test_a_run_does_not_start_from_weights_that_are_not_finite(run, tmp_path):
  workdir, states, config = run
  weights = formats.read(str(workdir))
  weights.params["backbone"]["blocks"]["ls1"]["gamma"][1, 5] = -np.inf
  formats.write(weights, str(tmp_path / "w.pth"), "released")
  with pytest.raises(errors.UserError) as caught:
    started_from(str(tmp_path / "w.pth"), states[3], config)
  assert str(caught.value).startswith(
    f"config.init.backbone: {tmp_path}/w.pth: blocks.1.ls1.gamma has 1 values that"
  )


def test_weights_of_another_grid_are_resized_and_of_another_depth_refused(run):
  workdir, states, config = run
  changed = config.copy_and_resolve_references()
  with changed.unlocked():
    changed.backbone.pos_grid = 6
  started = started_from(str(workdir), states[3], changed)
  assert started.student["backbone"]["pos_embed"].shape == (1, 37, 64)
  with changed.unlocked():
    changed.backbone.update(depth=5, ffn="mlp")
  with pytest.raises(
    errors.UserError, match=r"depth=3 there and .*depth=5; ffn=swiglu"
  ):
    started_from(str(workdir), states[3], changed)


def named(config, path, value):
  changed = config.copy_and_resolve_references()
  group, _, name = path.rpartition(".")
  with changed.unlocked():
    changed[group][name] = value
  return changed


def test_a_run_starts_from_the_teacher_and_the_heads_of_another(run):
  workdir, states, config = run
  before, abstract = random_state(config, seed=0)
  state = start.from_weights(before, named(config, "init.run", f"{workdir}@3"))
  for tree in (state.student, state.teacher):
    jax.tree.map(np.testing.assert_array_equal, tree, states[3].teacher)
  jax.tree.map(np.testing.assert_array_equal, state.opt_state, before.opt_state)
  assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(
    lambda x: x.sharding, abstract
  )


def test_a_run_with_other_heads_is_refused_by_their_names(run):
  workdir, _, config = run
  other = config.copy_and_resolve_references()
  with other.unlocked():
    other.heads.dino.prototypes = 40
  before, _ = random_state(other, seed=0)
  with pytest.raises(errors.UserError, match=r"config.init.run: .*dino_head.*v is \["):
    start.from_weights(before, named(other, "init.run", str(workdir)))
  with other.unlocked():
    del other.heads.ibot
  before, _ = random_state(other, seed=0)
  with pytest.raises(errors.UserError, match=r"ibot_head.* left over.*config.heads"):
    start.from_weights(before, named(other, "init.run", str(workdir)))


def test_the_gram_teacher_is_that_of_the_step_that_is_named(run):
  workdir, states, config = run
  before, _ = random_state(config, seed=0)
  assert start.with_gram_teacher(before, config) is before
  state = start.with_gram_teacher(before, named(config, "gram.teacher", f"{workdir}@3"))
  wanted = before.replace(gram_teacher=states[3].teacher["backbone"])
  jax.tree.map(np.testing.assert_array_equal, state, wanted)


@pytest.mark.parametrize(
  "name, message",
  [
    ("nowhere", "config.gram.teacher: nowhere does not exist; give a run's workdir"),
    ("{run}@5", "config.gram.teacher: .* has no checkpoint of step 5, only \\[3, 7\\]"),
  ],
)
def test_a_gram_teacher_that_is_not_there_is_refused(run, name, message):
  workdir, _, config = run
  before, _ = random_state(config, seed=0)
  config = named(config, "gram.teacher", name.format(run=workdir))
  with pytest.raises(errors.UserError, match=message):
    start.with_gram_teacher(before, config)
