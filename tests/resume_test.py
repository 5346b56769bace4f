"""A checkpoint of an earlier version resumes: in today's state, and in a larger one.

golden/checkpoint.tar.xz holds step 2 of a run of version 0.1.0: quickstart.py as it
was, with a backbone of one block, 16 channels and 2 heads, a head of 32, 8 and 16,
LayerScale from 0.5, batches of 16, a peak of 1e-3 after one step, and 4 steps in all.
The fixture `config` takes back what the recipe has changed since.
"""

import dataclasses
import json
import pathlib
import tarfile

import jax
import pytest

from dinojax import assembly, checkpoint, checksums, preflight, sharding
from dinojax.data import feed, mixture
from dinojax.runtime import workdir
from experiments import digits

GOLDEN = pathlib.Path(__file__).parent / "golden" / "checkpoint.tar.xz"
LOSSES = {3: 10.639874458312988, 4: 9.747298240661621}  # of the run that wrote it


def fields(state):
  return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
  folder = tmp_path_factory.mktemp("golden")
  with tarfile.open(GOLDEN) as archive:
    archive.extractall(folder / "checkpoints", filter="data")
  return folder


@pytest.fixture(scope="module")
def config(golden):
  """That run in the fields of today."""
  config = digits.get_config()
  with config.unlocked():
    config.workdir = str(golden)
    config.remat = "none"  # quicker to compile
    config.backbone.update(width=16, depth=1, heads=2, layerscale_init=0.5)
    config.backbone.update(patch_size=4, pos_grid=4)
    config.heads.dino.update(hidden=32, bottleneck=8, prototypes=16)
    config.update(total_steps=4, workers=0)
    config.schedules.teacher_momentum.start = 0.9
    for name, size in (("global1", 16), ("global2", 16), ("local", 12)):
      config.augment[name].size = size
      config.augment[name].geometry.update(rotate=0.0, shear=0.0, perspective=0.0)
    config.data.batch_size = 16
    config.schedules.learning_rate.update(peak=1e-3, warmup_steps=1)
  return config


@pytest.fixture(scope="module")
def run(config):
  mesh = sharding.make_mesh(**config.mesh, devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    yield mesh, assembly.assemble(config, mesh)


def restore(folder, abstract_state):
  checkpoints = checkpoint.Checkpoints(str(folder), every=2, keep_last=3, keep_best=1)
  restored = checkpoints.restore(abstract_state, check=lambda record: None)
  checkpoints.close()
  return restored


def test_its_config_is_that_of_todays_recipe(golden, config):
  preflight.check(config, devices=1)
  record = json.loads((golden / "checkpoints/2/record/metadata").read_text())
  workdir.check_same_run(
    record,
    config=config.to_dict(),
    data_fingerprint=record["data_fingerprint"],
    free=workdir.FREE_FIELDS,
  )


def test_it_resumes_to_the_losses_of_the_run_that_wrote_it(golden, config, run):
  mesh, made = run
  state, record = restore(golden, made.abstract_state)
  assert record["step"] == int(state.step) == 2
  data = mixture.open_mixture(config.data.sources, config.data.weights)
  batches = feed.Feed(config, data, mesh=mesh, start_step=2)
  _, key = jax.random.split(jax.random.key(config.seed))
  for step, loss in LOSSES.items():
    state, scalars = made.train_step(state, next(batches), key)
    assert float(scalars["loss"]) == pytest.approx(loss, rel=1e-4), step
  batches.close()


def test_it_restores_into_a_state_with_a_gram_teacher(golden, run):
  _, made = run
  backbone = made.abstract_state.teacher["backbone"]
  state, _ = restore(golden, made.abstract_state.replace(gram_teacher=backbone))
  assert state.gram_teacher is None
  expected, _ = restore(golden, made.abstract_state)
  assert checksums.of(fields(state)) == checksums.of(fields(expected))
