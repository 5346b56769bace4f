"""Dense evaluation of a run is what `evaluate` makes of its EMA teacher's patches."""

import jax
import numpy as np
import pytest

from dinojax import assembly, backbone, errors, preflight, sharding
from dinojax.data import scenes
from dinojax.evals import dense, dense_sources, patches, segmentation
from experiments import digits


def make_config(**fields):
  config = digits.get_config()
  with config.unlocked():
    config.backbone.update(width=16, depth=1, heads=2)
    config.heads.dino.update(hidden=16, bottleneck=8, prototypes=32)
    config.dense_eval.update(every=10, **fields)
  return config


def test_it_is_k_nn_segmentation_by_the_patches_of_the_teacher(monkeypatch):
  monkeypatch.setattr(scenes, "SCENES", {"train": 24, "test": 16})
  specs = {name: f"embedded:scenes:{name}" for name in ("train", "test")}
  config = make_config(k=7, memory=500, crop=24, batch_size=8, **specs)
  mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
  run, calls = assembly.assemble(config, mesh), []
  with jax.set_mesh(mesh):
    rng = np.random.default_rng(0)
    noise = lambda x: 0.1 * rng.normal(size=x.shape).astype(x.dtype)  # noqa: E731
    teacher = jax.tree.map(noise, run.abstract_state.teacher)
    evaluation = dense.open_evaluation(
      config, mesh=mesh, progress=lambda: calls.append(1)
    )
    found = evaluation.accuracy(run.patch_tokens, teacher, patch_size=4)
    module = run.nets.backbone
    reader = patches.Reader(
      jax.jit(lambda p, images: backbone.apply(module, p, images).patches),
      teacher["backbone"],
      patch_size=4,
      side=24,
      mesh=mesh,
      batch_size=8,
      workers=0,
      max_pixels=10_000,
    )
    opened = dense_sources.open_sources(specs, task="this")
    names = opened["train"].map_classes
    memory = patches.remember(
      reader,
      opened["train"],
      num_classes=len(names),
      most=500,
      seed=0,
      description="",
    )
    wanted = segmentation.knn_segmentation(
      reader, memory, opened["test"], class_names=names, k=7, temperature=0.02
    )
  assert found == {name: wanted[name] for name in dense.REPORTED}
  assert 0.05 < found["knn_segmentation_miou"] < 0.9
  assert len(calls) >= 5
  assert dense.describe(found).startswith("k-NN segmentation, mean IoU ")


def test_it_is_off_by_default_and_mistakes_name_the_field():
  config = digits.get_config()
  assert dense.open_evaluation(config, mesh=None, progress=None) is None
  config = make_config(train="embedded:nothing:train")
  with pytest.raises(errors.UserError, match=r"config\.dense_eval\.train"):
    dense.open_evaluation(config, mesh=None, progress=None)
  for fields, line in (
    (dict(crop=18), "config.dense_eval.crop=18 must be a multiple"),
    (dict(temperature=0.0), "config.dense_eval.temperature=0.0 must be above 0"),
    (dict(k=0), "config.dense_eval.k=0 must be at least 1"),
  ):
    with pytest.raises(errors.UserError, match=line):
      preflight.check(make_config(**fields), devices=1)
