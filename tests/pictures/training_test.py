"""Pictures of a run come when they are due, cost nothing when off, and end no run."""

import dataclasses

import jax
import numpy as np
import pytest

from dinojax import assembly, errors, sharding
from dinojax.data import mixture
from dinojax.pictures import album, training
from dinojax.weights import model
from experiments import quickstart

NAMES = {
  *("crops", "components", "similarity", "attention", "neighbours", "map_pca"),
  *("prototypes_images", "prototypes_patches"),
}


@dataclasses.dataclass
class Log:
  """What of a run's log pictures use."""

  written: list = dataclasses.field(default_factory=list)
  flushed: int = 0

  def flush(self):
    self.flushed += 1

  def write_images(self, step, images):
    self.written.append((step, images))


def make(*, every, **fields):
  """A recorder of the quickstart's data with a small network, its config and mesh."""
  config = quickstart.get_config()
  with config.unlocked():
    config.backbone.update(width=16, depth=1, heads=2)
    config.heads.dino.update(hidden=16, bottleneck=8, prototypes=32)
    config.pictures.every = every
    config.knn.every = 0
    config.update(fields)
  data = mixture.open_mixture(config.data.sources, config.data.weights)
  nets = assembly.make_nets(config)
  mesh = sharding.make_mesh(data=1, fsdp=2, devices=jax.devices()[:2])
  recorder = training.Recorder(
    config, data, nets=nets, mesh=mesh, progress=lambda: None
  )
  return recorder, config, mesh


def teacher_of(config):
  """Weights of noise."""
  rng = np.random.default_rng(0)
  architecture = {name: config.backbone[name] for name in model.ARCHITECTURE}
  shapes = {
    "backbone": model.shapes(architecture),
    "dino_head": model.head_shapes(**config.heads.dino, width=config.backbone.width),
  }
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.3).astype(np.float32), shapes
  )


def test_pictures_come_every_nth_step_on_any_mesh(monkeypatch):
  monkeypatch.setattr(training, "AT_MOST", 40)
  monkeypatch.setattr(training, "COUNT", 3)
  recorder, config, mesh = make(every=2)
  log, teacher = Log(), teacher_of(config)
  with jax.set_mesh(mesh):
    recorder.write(1, None, log)
    assert log == Log()  # the device is not even waited for
    recorder.write(2, teacher, log)
  ((step, images),) = log.written
  assert step == 2 and log.flushed == 1
  assert {name.partition("/")[2] for name in images} == NAMES
  for image in images.values():
    assert image.dtype == np.uint8 and image.shape[2] == 3 and image.std() > 5


def test_pictures_that_are_off_do_nothing():
  recorder, _, _ = make(every=0, loggers=())
  log = Log()
  for step in range(5):
    recorder.write(step, None, log)
  assert log == Log()


@pytest.mark.parametrize("error", [OSError("gone"), errors.UserError("not\nfinite")])
def test_a_picture_that_fails_is_a_warning_in_one_line(monkeypatch, capsys, error):
  def fail(*_, **__):
    raise error

  monkeypatch.setattr(album, "collect", fail)
  recorder, _, _ = make(every=1)
  log = Log()
  recorder.write(1, {"backbone": {}}, log)
  assert log.written == [(1, {})]
  reason = " ".join(str(error).split())
  assert capsys.readouterr().err.strip() == f"warning: no pictures of step 1: {reason}"


def test_pictures_need_tensorboard():
  with pytest.raises(errors.UserError, match="every=5 needs tensorboard"):
    make(every=5, loggers=())
