"""Memory of what a run compiles, beside what its arrays must take."""

import functools

import jax
import pytest
import tiny

from dinojax import assembly, dino, sharding
from dinojax.data import train_batches
from dinojax.planning import memory


@pytest.fixture(scope="module")
def run():
  """(config, mesh, assembly) of a tiny run on two devices."""
  config = tiny.config()
  config.backbone.depth = 1
  mesh = sharding.make_mesh(data=2, fsdp=1, devices=jax.devices()[:2])
  return config, mesh, assembly.assemble(config, mesh)


def test_a_device_holds_its_shards(run):
  _, mesh, _ = run
  split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  tree = [
    jax.ShapeDtypeStruct((6, 5), "float32", sharding=split),
    jax.ShapeDtypeStruct((7,), "int8", sharding=whole),
  ]
  assert memory.on_device(tree) == 6 // 2 * 5 * 4 + 7


def test_logits_of_the_teacher_are_those_that_a_step_makes(run):
  config, _, assembled = run
  shapes = train_batches.batch_shapes(config)
  batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
  logits = functools.partial(dino.teacher_logits, nets=assembled.nets)
  made = jax.eval_shape(logits, assembled.abstract_state.teacher, batch)
  assert memory.teacher_logits(config) == 4 * sum(x.size for x in made.values())


def test_start_and_evaluation_are_compiled_and_counted_with_what_a_run_holds(
  run, monkeypatch
):
  config, mesh, assembled = run
  images = dict(train=2_000, test=64, classes=5)
  monkeypatch.setattr(memory, "IMAGENET", images)
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.knn.update(batch_size=16, ks=(2,), every=10, crop=56, resize=56)
  with jax.set_mesh(mesh):
    found = memory.beside_the_step(config, assembled, mesh)
  state = memory.on_device(assembled.abstract_state)
  bank = images["train"] * config.backbone.width * 4 / mesh.size
  assert found.keys() == {"start", "k-NN, features", "k-NN, neighbours"}
  assert state <= found["start"] < 2 * state
  assert found["k-NN, features"] > state + bank
  assert found["k-NN, neighbours"] > state + 2 * bank  # stacked, then searched


def test_patches_of_a_dense_evaluation_are_counted_at_ade20ks_size(run, monkeypatch):
  config, mesh, assembled = run
  monkeypatch.setattr(memory, "ADE20K", dict(train=300, classes=50))
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.knn.every = 0
    config.dense_eval.update(every=10, k=3, memory=3_000, crop=56, batch_size=16)
  with jax.set_mesh(mesh):
    found = memory.beside_the_step(config, assembled, mesh)
  state = memory.on_device(assembled.abstract_state)
  patches = 19 * 16 * 10  # 10 patches of each image, of 19 batches
  bank = patches * (config.backbone.width + 50) * 4 / mesh.size
  assert found.keys() == {"start", "dense_eval, neighbours"}
  assert state + 2 * bank <= found["dense_eval, neighbours"] < state + 2 * bank + 2**28


def test_without_evaluation_only_the_start_is_compiled_beside_the_step(run):
  config, mesh, assembled = run
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.knn.every = 0
  with jax.set_mesh(mesh):
    assert set(memory.beside_the_step(config, assembled, mesh)) == {"start"}
