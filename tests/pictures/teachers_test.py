"""A teacher is loaded with its heads, and its run's config makes its crops."""

import json

import jax
import numpy as np
import pictures
from PIL import Image

from dinojax.data import sources
from dinojax.pictures import teachers
from dinojax.weights import model, runs
from experiments import digits

ARCHITECTURE = model.DEFAULTS | dict(
  **dict(patch_size=4, pos_grid=4, width=16, depth=1, heads=2, ffn="mlp"),
  **dict(registers=0, pool="gap"),
)
SIZES = {"resize": 18, "crop": 16}


def noise(shapes):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), dict(shapes)
  )


def test_a_runs_teacher_comes_with_its_heads_sizes_and_config(tmp_path):
  head = noise(model.head_shapes(hidden=8, bottleneck=4, prototypes=12, width=16))
  params = {"backbone": noise(model.shapes(ARCHITECTURE)), "dino_head": head}
  weights = model.Weights(ARCHITECTURE, params, SIZES)
  runs.write(tmp_path / "checkpoints" / "0", weights)
  teacher, origin = teachers.load(str(tmp_path))
  assert origin.step_text == ", step 0"
  found = model.architecture(origin.config["backbone"], "its config")
  assert found == ARCHITECTURE
  assert teacher.heads["dino"].module.prototypes == 12
  assert teacher.sizes == SIZES
  runs.write(
    tmp_path / "alone", model.Weights(ARCHITECTURE, {"backbone": params["backbone"]})
  )
  teacher, origin = teachers.load(str(tmp_path / "alone"), pool="cls", crop=32)
  assert origin == teachers.Origin() and teacher.heads == {}
  assert teacher.module.pool == "cls" and teacher.sizes == {"resize": 37, "crop": 32}


def test_crops_are_those_of_the_runs_config_or_none(tmp_path, caplog):
  for i, pixels in enumerate(pictures.make(3)):
    Image.fromarray(pixels).save(tmp_path / f"{i}.png")
  source = sources.open_source(f"folder:{tmp_path}", field="--images")
  config = json.loads(json.dumps(digits.get_config().to_dict()))
  found = teachers.run_crops(source, config, count=2)
  assert [some.local_crops.shape for some in found] == [(2, 12, 12, 3)] * 2
  assert teachers.run_crops(source, None, count=2) == []
  assert teachers.run_crops(source, {"backbone": ARCHITECTURE}, count=2) == []
  del config["masking"]
  assert teachers.run_crops(source, config, count=2) == []
  assert "the run's config has no" in caplog.text
