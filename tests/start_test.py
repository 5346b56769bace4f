"""A frozen teacher is read from weights of any format, and mistakes are named."""

import distill_test
import jax
import numpy as np
import pytest
import tiny

from dinojax import errors, start
from dinojax.weights import formats, model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """Weights of the teacher of distill_test.py, with and without its heads."""
  config = distill_test.make_config(shared=False)
  folder = tmp_path_factory.mktemp("weights")
  params = tiny.noise(start.teacher_shapes(config), seed=1)
  fields = {name: config.distill.backbone[name] for name in model.ARCHITECTURE}
  whole = model.Weights(model.in_one_form(fields), params)
  formats.write(whole, f"{folder}/whole", "dinojax")
  backbone = model.Weights(whole.backbone, {"backbone": params["backbone"]})
  formats.write(backbone, f"{folder}/backbone", "dinojax")
  return folder, params


def read(weights, name, kind, **fields):
  config = distill_test.make_config(kind, shared=False)
  with config.unlocked():
    config.distill.teacher = f"{weights[0]}/{name}"
    config.distill.backbone.update(fields)
  return start.read_teacher(config, distill_test.one_device_mesh())


def test_a_teacher_is_read_with_the_heads_that_its_kind_needs(weights):
  found = read(weights, "whole", "prototypes")
  jax.tree.map(np.testing.assert_array_equal, found, weights[1])
  for name in ("whole", "backbone"):
    found = read(weights, name, "features")
    wanted = {"backbone": weights[1]["backbone"]}
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


MISTAKES = {
  "backbone has no dino_head and no ibot_head.*kind=features": ("backbone", {}),
  "does not exist": ("nowhere", {}),
  "another network.*width=48 there and config.distill.backbone.width=32": (
    "whole",
    dict(width=32),
  ),
  "set config.distill.backbone.pos_grid=4": ("whole", dict(pos_grid=5)),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_teacher_that_does_not_fit_is_named(weights, line):
  name, fields = MISTAKES[line]
  with pytest.raises(errors.UserError, match=f"config.distill.teacher: .*{line}"):
    read(weights, name, "prototypes", **fields)
