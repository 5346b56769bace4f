"""Each mistake in a config ends in one line: field, value, limit, way out."""

import re

import pytest

from dinojax import config_fields, errors, preflight
from experiments import vitg14

GRAM = {"gram.teacher": "runs/a@5000", "schedules.gram_weight.final": 2.0}
ERRORS = [
  # What is set, on how many devices, and the whole message.
  (
    {"data.batch_size": 3000},
    128,
    "config.data.batch_size=3000 must be a multiple of 2048 (config.group_size=16 times"
    " 128 devices times config.accumulation=1); try 4096",
  ),
  (
    {"data.batch_size": 40},
    2,
    "config.data.batch_size=40 must be a multiple of 32 (config.group_size=16 times 2"
    " devices times config.accumulation=1); try 64, or config.group_size=4",
  ),
  ({"accumulation": 0}, 1, "config.accumulation=0 must be at least 1"),
  (
    {"checkpoint.keep_steps": (5_000, 7_000)},
    1,
    "config.checkpoint.keep_steps=(5000, 7000) must be multiples of"
    " config.checkpoint.every=5000: no other step is saved",
  ),
  (
    {"init.backbone": "a.pth", "init.run": "runs/b"},
    1,
    "config.init.backbone=a.pth and config.init.run=runs/b exclude each other; name"
    " one",
  ),
  (
    {"schedules.gram_weight.final": 2.0},
    1,
    "config.schedules.gram_weight.final=2.0 needs a Gram teacher; set"
    " config.gram.teacher=RUN@STEP, or a file of weights",
  ),
  (
    {"gram.teacher": "runs/a@5000"},
    1,
    "config.gram.teacher=runs/a@5000 without weight changes nothing; set"
    " config.schedules.gram_weight.final, for example to 2.0",
  ),
  (
    GRAM | {"gram.refresh_steps": (20, 10)},
    1,
    "config.gram.refresh_steps=(20, 10) must be rising steps above 0, with a"
    " config.gram.teacher",
  ),
  (
    {"gram.refresh_steps": (10,)},
    1,
    "config.gram.refresh_steps=(10,) must be rising steps above 0, with a"
    " config.gram.teacher",
  ),
  (
    GRAM | {"gram.crop_size": 112},
    1,
    "config.gram.crop_size=112 must be 0, or a multiple of"
    " config.backbone.patch_size=14 from config.augment.global1.size=224 on, with a"
    " config.gram.teacher; try 448",
  ),
  (
    {"backbone.positions": "rope", "backbone.heads": 256},
    1,
    "config.backbone.heads=256 gives each 6 channels; rotary positions"
    " (config.backbone.positions=rope) need a multiple of 4",
  ),
  (
    {"backbone.norm_eps": 0.0},
    1,
    "config.backbone.norm_eps=0.0 must be within (0, 0.1]",
  ),
  (
    {"accumulation": 3, "data.batch_size": 64},
    2,
    "config.data.batch_size=64 must be a multiple of 96 (config.group_size=16 times 2"
    " devices times config.accumulation=3); try 96",
  ),
  (
    {"group_size": 24},
    1,
    "config.data.batch_size=2048 must be a multiple of 24 (config.group_size=24 times 1"
    " devices times config.accumulation=1); try 2064, or config.group_size=8",
  ),
  (
    {"knn.batch_size": 100},
    8,
    "config.knn.batch_size=100 must be a multiple of 8 devices; try 104",
  ),
  (
    {"backbone.ffn": "relu"},
    1,
    "config.backbone.ffn='relu' must be one of mlp, swiglu",
  ),
  (
    {"backbone.pool": "mean"},
    1,
    "config.backbone.pool='mean' must be one of gap, cls",
  ),
  (
    {"backbone.dtype": "float16"},
    1,
    "config.backbone.dtype='float16' must be one of float32, bfloat16",
  ),
  (
    {"losses.targets": "softmax"},
    1,
    "config.losses.targets='softmax' must be one of sinkhorn, centering",
  ),
  (
    {"backbone.drop_path": 1.0},
    1,
    "config.backbone.drop_path=1.0 must be within [0, 1)",
  ),
  (
    {"backbone.drop_path": -0.1},
    1,
    "config.backbone.drop_path=-0.1 must be within [0, 1)",
  ),
  (
    {"total_steps": 1_000_000, "optimizer.freeze_prototypes_steps": 1_000_000},
    1,
    "config.optimizer.freeze_prototypes_steps=1000000 must be below"
    " config.total_steps=1000000, or prototypes never learn; try 10000",
  ),
  (
    {"masking.ratio_min": 0.6},
    1,
    "config.masking.ratio_min=0.6 and ratio_max=0.5 must rise within (0, 1)",
  ),
  (
    {"masking.ratio_max": 1.0},
    1,
    "config.masking.ratio_min=0.1 and ratio_max=1.0 must rise within (0, 1)",
  ),
  (
    {"total_steps": 500},
    1,
    "config.schedules.learning_rate.warmup_steps=693350 must be below"
    " config.total_steps=500",
  ),
  (
    {"backbone.mean": (124, 116, 104)},
    1,
    "config.backbone.mean=(124, 116, 104) must be three numbers, 0.0 to 1",
  ),
  (
    {"backbone.std": (0.2, 0.2, 0.0)},
    1,
    "config.backbone.std=(0.2, 0.2, 0.0) must be three numbers, 0.001 to 1",
  ),
  (
    {"schedules.learning_rate.warmup": "exponential"},
    1,
    "config.schedules.learning_rate.warmup='exponential' must be one of linear, cosine",
  ),
  (
    {"schedules.gram_weight.final": -1.0},
    1,
    "config.schedules.gram_weight.final=-1.0 must be at least 0.0",
  ),
  (
    {"schedules.local_weight.steps": -5},
    1,
    "config.schedules.local_weight.steps=-5 must be at least 0",
  ),
  (
    {"knn.every": 7000},
    1,
    "config.knn.every=7000 must be a multiple of config.checkpoint.every=5000, so that"
    " the best checkpoint is a saved one; try 10000",
  ),
  (
    {"backbone.heads": 25},
    1,
    "config.backbone.width=1536 must be a multiple of config.backbone.heads=25",
  ),
  (
    {"augment.global1.size": 225},
    1,
    "config.augment.global1.size=225 must be a multiple of"
    " config.backbone.patch_size=14; try 238",
  ),
  (
    {"augment.global2.size": 0},
    1,
    "config.augment.global2.size=0 must be a multiple of config.backbone.patch_size=14;"
    " try 14",
  ),
  (
    {"augment.local.size": 96},
    1,
    "config.augment.local.size=96 must be a multiple of config.backbone.patch_size=14;"
    " try 98",
  ),
  (
    {"knn.crop": 256},
    1,
    "config.knn.crop=256 must be a multiple of config.backbone.patch_size=14; try 266",
  ),
  (
    {"augment.global2.size": 238},
    1,
    "config.augment.global2.size=238 must equal config.augment.global1.size=224",
  ),
]


def make_config(changes):
  config = vitg14.get_config()
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  return config


def message(config, devices=1):
  with pytest.raises(errors.UserError) as caught:
    preflight.check(config, devices=devices)
  assert "\n" not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize(
  "changes, devices, text", ERRORS, ids=[str(case[0]) for case in ERRORS]
)
def test_an_impossible_value_is_refused_with_the_way_out(changes, devices, text):
  assert message(make_config(changes), devices) == text


@pytest.mark.parametrize("path, least", config_fields.AT_LEAST.items())
def test_a_number_below_its_least_is_refused(path, least):
  changes = {path.removeprefix("config."): least - 1}
  text = message(make_config(changes))
  assert text == f"{path}={least - 1} must be at least {least}"


@pytest.mark.parametrize("batch_size, accumulation", [(4096, 1), (64, 1), (64, 4)])
def test_the_way_out_of_a_batch_size_works(batch_size, accumulation):
  changes = {"data.batch_size": batch_size - 7, "accumulation": accumulation}
  config = make_config(changes)
  devices = batch_size // 16 // accumulation
  way_out = int(re.search(r"try (\d+)$", message(config, devices))[1])
  config.data.batch_size = way_out
  config.knn.batch_size = devices
  preflight.check(config, devices=devices)


def test_a_misspelt_field_is_named_with_its_likeliest_spelling():
  config = make_config({"backbone.drop_paht": 0.1})
  assert message(config) == (
    "config.backbone.drop_paht is not a field; did you mean drop_path?"
  )


def test_a_field_like_no_other_is_named_with_those_there_are():
  config = make_config({"masking.zzz": 1})
  assert message(config) == (
    "config.masking.zzz is not a field; did you mean ratio_min or ratio_max?"
  )


@pytest.mark.parametrize("path", ["seed", "schedules.weight_decay.final", "heads.dino"])
def test_a_missing_field_is_named(path):
  config = vitg14.get_config()
  with config.unlocked():
    *groups, name = path.split(".")
    group = config_fields.field(config, ".".join(["config", *groups]))
    del group[name]
  assert message(config) == (
    f"config.{path} is missing; see experiments/vitg14.py for its meaning"
  )


def test_the_head_of_the_patches_may_be_missing_but_not_misspelt():
  config = vitg14.get_config()
  with config.unlocked():
    del config.heads.ibot
  preflight.check(config, devices=128)
  config = make_config({"heads.ibto": dict(hidden=1)})
  assert "did you mean ibot?" in message(config)


CROP_ERRORS = [
  ("area", (0.5, 0.1), "area=(0.5, 0.1) must rise within (0, 1]"),
  ("area", (0.0, 0.5), "area=(0.0, 0.5) must rise"),
  ("area", (0.5, 1.1), "area=(0.5, 1.1) must rise"),
  ("area", (0.5,), "area=(0.5,) must rise"),
  ("aspect", (2.0, 1.0), "aspect=(2.0, 1.0) must rise and be above 0"),
  ("aspect", (1.0, 2.0, 3.0), "aspect=(1.0, 2.0, 3.0) must rise and be above 0"),
  ("geometry.rotate", 190.0, "geometry.rotate=190.0 must be in [0, 180] degrees"),
  ("geometry.shear", -1.0, "geometry.shear=-1.0 must be in [0, 45] degrees"),
  ("geometry.perspective", 0.5, "geometry.perspective=0.5 must be in [0, 0.4]"),
  ("flip_prob", 1.5, "flip_prob=1.5 must be in [0, 1]"),
  ("grey_prob", -0.1, "grey_prob=-0.1 must be in [0, 1]"),
  ("grey_prob", float("nan"), "grey_prob=nan must be in [0, 1]"),
  ("solarize_prob", 2.0, "solarize_prob=2.0 must be in [0, 1]"),
  ("jitter.prob", 9.0, "jitter.prob=9.0 must be in [0, 1]"),
  ("jitter.hue", 0.6, "jitter.hue=0.6 must be in [0, 0.5]"),
  ("jitter.contrast", -1.0, "jitter.contrast=-1.0 must be 0"),
  ("blur.sigma", (0.0, 1.0), "blur.sigma=(0.0, 1.0) must rise"),
  ("blur.kernel", 8, "blur.kernel=8 must be odd"),
]


@pytest.mark.parametrize("crop", ["global1", "global2", "local"])
def test_a_range_of_crops_outside_its_limits_is_named_with_them(crop):
  for name, value, text in CROP_ERRORS:
    config = make_config({f"augment.{crop}.{name}": value})
    assert message(config).startswith(f"config.augment.{crop}.{text}")


def test_a_misspelt_field_of_a_crop_is_named():
  config = make_config({"augment.local.jitter.contrats": 0.1})
  assert message(config) == (
    "config.augment.local.jitter.contrats is not a field; did you mean contrast?"
  )


def test_without_devices_all_but_the_batch_is_checked():
  preflight.check(make_config({"data.batch_size": 3000}), devices=None)
  with pytest.raises(errors.UserError, match=r"blur\.kernel=8 must be odd"):
    preflight.check(make_config({"augment.local.blur.kernel": 8}), devices=None)


def test_a_teacher_temperature_that_never_arrives_is_doubted():
  assert preflight.doubts(vitg14.get_config()) == []
  changes = {
    "total_steps": 2_000,
    "schedules.learning_rate.warmup_steps": 100,
    "optimizer.freeze_prototypes_steps": 20,
  }
  (line,) = preflight.doubts(make_config(changes))
  assert line == (
    "config.schedules.teacher_temp.warmup_steps=37500 is longer than"
    " config.total_steps=2000: the teacher temperature never reaches 0.07"
  )


def test_a_loss_weight_that_never_arrives_is_doubted():
  steps = {"first_step": 5_000_000, "steps": 1_000_000, "final": 2.0}
  changes = {f"schedules.gram_weight.{name}": x for name, x in steps.items()}
  (line,) = preflight.doubts(make_config(changes))
  assert line == (
    "config.schedules.gram_weight changes from step 5000000 to 6000000, and"
    " config.total_steps=5546800: it never reaches 2.0"
  )
  assert preflight.doubts(make_config({**changes, "total_steps": 6_000_000})) == []


def test_heads_without_weight_norm_are_an_option_of_each_head():
  config = vitg14.get_config()
  with config.unlocked():
    config.heads.dino.weight_norm = False
    preflight.check(config, devices=None)
    config.heads.ibot.weight_norm = "no"
  assert message(config, devices=None) == (
    "config.heads.ibot.weight_norm='no' must be one of True, False"
  )
  with config.unlocked():
    del config.heads.ibot
  preflight.check(config, devices=None)


def test_what_no_evaluation_uses_is_not_refused():
  config = vitg14.get_config()
  config.update_from_flattened_dict({"knn.every": 0, "knn.batch_size": 100})
  preflight.check(config, devices=8)


@pytest.mark.parametrize(
  "data, fsdp, devices, per_host, wanted",
  [
    (-1, 16, 128, 8, (16, 8)),
    (-1, 16, 8, 8, (1, 8)),
    (-1, 16, 1, 1, (1, 1)),
    (-1, 4, 128, 8, (32, 4)),
    (8, 16, 128, 8, (8, 16)),  # where both are given, as they are
    (1, -1, 128, 8, (1, 128)),
    (-1, 16, 128, 0, (8, 16)),  # no GPUs
  ],
)
def test_weights_are_gathered_within_a_host_of_gpus_unless_the_mesh_is_given(
  data, fsdp, devices, per_host, wanted
):
  found = preflight.mesh_shape(
    data=data, fsdp=fsdp, devices=devices, gpus_per_host=per_host
  )
  assert tuple(found.values()) == wanted
