"""Every experiment passes preflight, has the right size, and traces to a step."""

import functools
import importlib
import math
import pathlib

import jax
import numpy as np
import optax
import pytest

from dinojax import assembly, config_fields, dino, preflight, schedules
from dinojax.data import masking
from experiments import vitg14

NAMES = sorted(
  path.stem
  for path in (pathlib.Path(__file__).parent.parent / "experiments").glob("*.py")
)
# Devices of the headers; the others run on one.
DEVICES = {"vitg14": 128, "vitg14_dinov2": 128, "vitl14": 32, "vitb14": 8, "vits14": 8}
DEVICES |= {
  "vit7b16_gram": 256,
  "vit7b16_dinov3": 256,
  "vitl16_dinov3": 32,
  "vits16_dinov3": 8,
}
DEVICES |= {"vitl16_highres": 32, "distill": 128}
# At 224 pixels: the published sizes at 518 less 37^2 - 16^2 positions. Of DINOv3, which
# has no positions to learn, the arrays of the released .pth files.
BACKBONE = {
  "vitg14": 1_134_771_200,
  "vitg14_dinov2": 1_134_771_200,
  "vitl14": 304_368_640 - (37**2 - 16**2) * 1024,
  "vitb14": 86_580_480 - (37**2 - 16**2) * 768,
  "vits14": 22_056_576 - (37**2 - 16**2) * 384,
  "vit7b16_dinov3": 6_716_043_264,
  "vitl16_dinov3": 303_154_176,
  "vitl16_highres": 303_154_176,
  "vits16_dinov3": 21_601_152,
  "vit7b16_gram": 6_716_043_264,
  "adapt": 21_601_152,
}
STUDENT = {
  "vitg14": 1_234_919_040,
  "vitg14_dinov2": 1_234_919_040,
  "vit7b16_dinov3": 6_716_043_264 + 239_092_224 + 72_884_608,
  "vitl16_dinov3": 303_154_176 + 2 * 23_597_312,
  "vitl16_highres": 303_154_176 + 2 * 23_597_312,
}
# Recipes as the tables give them; images see 2 global and 8 local crops in each.
RECIPES = {
  "vitg14": dict(
    steps=80 * 69_335,
    batch=2048,
    peak=1e-4,
    warmup=10 * 69_335,
    decay=0.2,
    momentum=0.994,
    layer_decay=1.0,
    pool="gap",
    drop_path=0.4,
    targets="sinkhorn",
    prototypes=131_072,
  ),
  "vitg14_dinov2": dict(
    steps=625_000,
    batch=3072,
    peak=2e-4 * math.sqrt(3),
    warmup=100_000,
    decay=0.2,
    momentum=0.994,
    layer_decay=1.0,
    pool="cls",
    drop_path=0.4,
    targets="sinkhorn",
    prototypes=131_072,
  ),
  "vitl14": dict(
    steps=125_000,
    batch=2048,
    peak=4e-3 * math.sqrt(2),
    warmup=12_500,
    decay=0.4,
    momentum=0.992,
    layer_decay=0.9,
    pool="cls",
    drop_path=0.3,
    targets="centering",
    prototypes=65_536,
  ),
}
# DINOv3's by field, written out from the tables.
DINOV3 = {
  "vit7b16_dinov3": {
    "total_steps": 1_000_000,
    "group_size": 16,
    "heads.dino.prototypes": 262_144,
    "heads.ibot.prototypes": 98_304,
    "backbone.drop_path": 0.4,
    "backbone.rope_rescale": 2.0,
    "backbone.local_norm": True,
    "schedules.learning_rate": dict(
      peak=4e-4, final=4e-4, warmup_steps=100_000, warmup="linear"
    ),
    "schedules.weight_decay": dict(start=0.04, final=0.04),
    "schedules.teacher_momentum": dict(start=0.994, final=0.994),
    "schedules.teacher_temp": dict(start=0.04, final=0.07, warmup_steps=100_000),
    "optimizer.layer_decay": 0.98,
    "optimizer.clip_norm": 30.0,
    "optimizer.b2": 0.99,
    "optimizer.freeze_prototypes_steps": 5_000,
    "data.batch_size": 4_096,
    "augment.global1.size": 256,
    "augment.local.size": 112,
    "augment.local.flip_prob": 0.0,
  },
  "vitl16_dinov3": {
    "total_steps": 125_000,
    "group_size": 64,
    "heads.dino.prototypes": 65_536,
    "heads.ibot.prototypes": 65_536,
    "backbone.drop_path": 0.3,
    "backbone.rope_rescale": 1.0,
    "backbone.local_norm": False,
    "schedules.learning_rate": dict(
      peak=1e-3 * 32**0.5, final=1e-6 * 32**0.5, warmup_steps=12_500, warmup="linear"
    ),
    "schedules.weight_decay": dict(start=0.04, final=0.4),
    "schedules.teacher_momentum": dict(start=0.992, final=1.0),
    "schedules.teacher_temp": dict(start=0.04, final=0.07, warmup_steps=37_500),
    "optimizer.layer_decay": 0.9,
    "optimizer.clip_norm": 3.0,
    "optimizer.b2": 0.999,
    "optimizer.freeze_prototypes_steps": 1_250,
    "data.batch_size": 2_048,
    "augment.global1.size": 224,
    "augment.local.size": 96,
    "augment.local.flip_prob": 0.5,
  },
}
DINOV3["vit7b16_gram"] = DINOV3["vit7b16_dinov3"] | {
  "total_steps": 1_200_000,
  "schedules.learning_rate": dict(
    peak=2.4e-4, final=2.4e-4, warmup_steps=100_000, warmup="linear"
  ),
  "schedules.teacher_momentum": dict(start=0.999, final=0.999),
  "schedules.gram_weight": dict(
    start=0.0, final=2.0, first_step=1_000_000, steps=1_000
  ),
  "schedules.local_weight": dict(
    start=1.0, final=0.5, first_step=1_000_000, steps=1_000
  ),
  "gram.refresh_steps": (1_010_000, 1_020_000, 1_030_000),
  "gram.crop_size": 512,
}
DINOV3["vitl16_highres"] = DINOV3["vitl16_dinov3"] | {
  "total_steps": 30_000,
  "group_size": 16,
  "schedules.learning_rate": dict(
    peak=5e-5 * 2**0.5, final=5e-5 * 2**0.5, warmup_steps=10_000, warmup="cosine"
  ),
  "schedules.weight_decay": dict(start=0.04, final=0.04),
  "schedules.teacher_momentum": dict(start=0.999, final=0.999),
  "schedules.teacher_temp": dict(start=0.07, final=0.07, warmup_steps=0),
  "schedules.local_weight": dict(start=0.5, final=0.5, first_step=0, steps=0),
  "schedules.gram_weight": dict(start=1.5, final=1.5, first_step=0, steps=0),
  "optimizer.freeze_prototypes_steps": 0,
  "gram.refresh_steps": (),
  "augment.global1.size": 512,
  "augment.local.size": 112,
}
DINOV3["vits16_dinov3"] = DINOV3["vitl16_dinov3"] | {"backbone.drop_path": 0.1}


def get_config(name):
  return importlib.import_module(f"experiments.{name}").get_config()


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def linear(inputs, outputs):
  return inputs * outputs + outputs


def head_by_hand(width, head):
  body = linear(width, head.hidden) + linear(head.hidden, head.hidden)
  bottleneck = linear(head.hidden, head.bottleneck)
  gains = head.prototypes if head.get("weight_norm", True) else 0
  return body + bottleneck + head.bottleneck * head.prototypes + gains


def backbone_by_hand(b):
  d = b.width
  usual = {"mlp": 4 * d, "swiglu": (int(4 * d * 2 / 3) + 7) // 8 * 8}[b.ffn]
  hidden = b.ffn_width or usual
  ffn = linear(d, hidden * (1 + (b.ffn == "swiglu"))) + linear(hidden, d)
  qkv = 3 * d * d + 3 * d * (b.qkv_bias != "none")
  block = qkv + linear(d, d) + ffn + 6 * d
  tokens = 2 + b.registers + (1 + b.pos_grid**2) * (b.positions == "learned")
  norms = 2 * d * (1 + b.local_norm)
  return linear(len(b.mean) * b.patch_size**2, d) + tokens * d + b.depth * block + norms


def structure(value):
  """Fields of networks and losses: numbers that are 0 or not, and all else as it is."""
  if hasattr(value, "items"):
    return {name: structure(field) for name, field in sorted(value.items())}
  return bool(value) if isinstance(value, int | float) else value


def structures():
  """What decides how a step is traced, of the first experiment of each kind, by name.

  {("backbone", "pool"): "gap", ...} and so on; those left out differ in sizes alone.
  """
  first = {}
  for name in NAMES:
    config = get_config(name)
    fields = {"remat": config.remat, "accumulation": config.accumulation}
    for group in ("backbone", "heads", "losses", "gram"):
      for field, value in structure(config[group]).items():
        fields[group, field] = repr(value)
    first.setdefault(repr(fields), (name, fields))
  return dict(first.values())


def of_a_kind():
  """Experiments of all kinds; long: each of its fields is as in one that is not."""
  left, seen, cases = structures(), set(), []
  while left:
    name = max(left, key=lambda name: len(left[name].items() - seen))
    new = left.pop(name).items() - seen
    seen |= new
    cases.append(pytest.param(name, marks=() if new else pytest.mark.long))
  return cases


@functools.cache
def assembled(name):
  config = get_config(name)
  nets, tx = assembly.make_nets(config), optax.sgd(1e-3)
  init = functools.partial(dino.init_state, nets=nets, tx=tx, cfg=config)
  return config, nets, tx, jax.eval_shape(init, jax.random.key(0))


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_passes_preflight_on_the_hardware_it_names(name):
  preflight.check(get_config(name), devices=DEVICES.get(name, 1))


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_has_its_number_of_parameters(name):
  config, _, _, state = assembled(name)
  backbone = backbone_by_hand(config.backbone)
  heads = [head_by_hand(config.backbone.width, h) for h in config.heads.values()]
  assert count(state.student["backbone"]) == backbone == BACKBONE.get(name, backbone)
  student = backbone + sum(heads)
  assert count(state.student) == student == STUDENT.get(name, student)
  assert count(state.teacher) == student
  assert {leaf.dtype for leaf in jax.tree.leaves(state.student)} == {np.dtype("f4")}


@pytest.mark.parametrize("name", of_a_kind())
def test_every_kind_of_experiment_traces_to_a_step(name):
  config, nets, tx, state = assembled(name)
  b, g, patch = config.data.batch_size, config.group_size, config.backbone.patch_size
  side, small = config.augment.global1.size, config.augment.local.size
  grid = side // patch
  slots = masking.slots(group_size=g, views=2, grid=grid, **config.masking)
  channels, kind = config.data.channels, np.dtype(config.backbone.image_dtype)
  num_local = config.augment.num_local
  shapes = {
    "global_crops": ((b, 2, side, side, channels), kind),
    "local_crops": ((b, num_local, small, small, channels), kind),
    "mask": ((b, 2, grid**2), np.bool_),
    "masked_indices": ((b // g, slots), np.int32),
    "masked_weights": ((b // g, slots), np.float32),
  }
  if gram := config.gram.crop_size:
    shapes["gram_crops"] = ((b, 2, gram, gram, channels), kind)
  plan = schedules.make_schedules(**config.schedules, total_steps=config.total_steps)
  step = functools.partial(
    dino.train_step, nets=nets, tx=tx, schedules=plan, cfg=config
  )
  after, scalars = jax.eval_shape(
    step,
    state,
    {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()},
    jax.random.key(0),
  )
  # The state keeps shapes and types, or each step would compile anew.
  assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), after) == (
    jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state)
  )
  assert all(value.shape == () for value in scalars.values())


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_hold_the_values_of_the_method(name):
  config = get_config(name)
  plan, head = config.schedules, config.heads.dino
  assert RECIPES[name] == dict(
    steps=config.total_steps,
    batch=config.data.batch_size,
    peak=pytest.approx(plan.learning_rate.peak),
    warmup=plan.learning_rate.warmup_steps,
    decay=plan.weight_decay.final,
    momentum=plan.teacher_momentum.start,
    layer_decay=config.optimizer.layer_decay,
    pool=config.backbone.pool,
    drop_path=config.backbone.drop_path,
    targets=config.losses.targets,
    prototypes=head.prototypes,
  )
  for part, value in {
    **{"learning_rate.final": 1e-6, "weight_decay.start": 0.04},
    **{"teacher_momentum.final": 1.0, "teacher_temp.start": 0.04},
    **{"teacher_temp.final": 0.07, "teacher_temp.warmup_steps": 37_500},
  }.items():
    assert config_fields.field(plan, f"config.{part}") == value
  optimizer = config.optimizer.to_dict()
  del optimizer["layer_decay"]
  assert optimizer == dict(
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    clip_norm=3.0,
    patch_embed_lr_scale=0.2,
    freeze_prototypes_steps=1_250,
  )
  assert config.masking.to_dict() == dict(ratio_min=0.1, ratio_max=0.5)
  assert config.losses.student_temp == 0.1 and config.losses.koleo_weight == 0.1
  blur = [config.augment[crop].blur.prob for crop in ("global1", "global2", "local")]
  solarize = [config.augment[x].solarize_prob for x in ("global1", "global2", "local")]
  assert (blur, solarize) == ([1.0, 0.1, 0.5], [0.0, 0.2, 0.0])
  assert config.augment.num_local == 8


@pytest.mark.parametrize("name", DINOV3)
def test_the_recipes_of_dinov3_hold_the_values_of_the_method(name):
  config = get_config(name)
  wanted = {
    **DINOV3[name],
    **{
      "losses.targets": "sinkhorn",
      "losses.koleo_weight": 0.1,
      "backbone.pool": "cls",
    },
    **{"augment.num_local": 8, "augment.local.geometry.rotate": 0.0},
    **{"heads.dino.weight_norm": False, "heads.ibot.weight_norm": False},
    **{"backbone.patch_size": 16, "backbone.registers": 4, "backbone.norm_eps": 1e-5},
    **{"backbone.positions": "rope", "backbone.layerscale_init": 1e-5},
    **{"optimizer.patch_embed_lr_scale": 0.2, "masking.ratio_max": 0.5},
  }
  for path, value in wanted.items():
    found = config_fields.field(config, f"config.{path}")
    if isinstance(value, dict):
      found = found.to_dict()
      assert found == {k: pytest.approx(v) for k, v in value.items()}, path
    else:
      assert found == pytest.approx(value), path


def test_the_high_resolution_stage_starts_from_the_run_that_it_continues():
  before, config = (get_config(f"vitl16_{name}") for name in ("dinov3", "highres"))
  assert config.init.run == config.gram.teacher == before.workdir
  for group in ("backbone", "heads"):
    assert config[group].to_dict() == before[group].to_dict()


@pytest.mark.parametrize("name", NAMES)
def test_experiments_are_locked_against_unknown_fields(name):
  config = get_config(name)
  groups = [config, *(g for g in config.values() if hasattr(g, "is_locked"))]
  for group in groups:
    assert group.is_locked
    with pytest.raises(AttributeError):
      group.no_such_field = 1


@pytest.mark.parametrize("name", NAMES)
def test_experiments_have_workdirs_of_their_own_and_stages_that_of_their_run(name):
  folders = [get_config(other).workdir for other in NAMES]
  stages = {get_config(other).workdir for other in NAMES if get_config(other).extend}
  folder = get_config(name).workdir
  assert folders.count(folder) == 1 + (folder in stages)


def test_ranges_of_one_kind_of_crop_change_no_other_kind():
  config = vitg14.get_config()
  config.augment.local.geometry.rotate = 90.0
  config.augment.local.jitter.hue = 0.0
  assert config.augment.global1.geometry.rotate == 10.0
  assert config.augment.global2.jitter.hue == 0.1
