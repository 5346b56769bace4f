"""Fields of a config: all that exist, and what each may be alone.

preflight.py checks them, and what they must be together.
"""

import copy
import math

_CROP = "size area aspect geometry flip_prob jitter grey_prob blur solarize_prob"
_HEAD = "hidden bottleneck prototypes weight_norm"
FIELDS = {
  "config": "workdir mesh remat unroll attention compiler_options compilation_cache"
  " accumulation workers log_every loggers pictures hang_minutes checkpoint extend seed"
  " group_size init backbone heads losses masking total_steps schedules optimizer data"
  " augment resolutions gram distill knn dense_eval alarm_window",
  "config.compiler_options": "cpu gpu tpu",
  "config.mesh": "data fsdp",
  "config.pictures": "every",
  "config.checkpoint": "every keep_last keep_best keep_steps",
  "config.init": "backbone run rgb",
  "config.gram": "teacher refresh_steps crop_size",
  "config.distill": "teacher kind backbone heads students",
  "config.backbone": "patch_size pos_grid width depth heads ffn registers pool"
  " drop_path layerscale_init dtype positions ffn_width norm_eps qkv_bias local_norm"
  " rope_shift rope_jitter rope_rescale rope_periods mean std image_dtype max_value",
  "config.heads": "dino ibot",
  **{f"config.heads.{name}": _HEAD for name in ("dino", "ibot")},
  "config.losses": "targets student_temp dino_weight ibot_weight koleo_weight",
  "config.masking": "ratio_min ratio_max",
  "config.schedules": "learning_rate weight_decay teacher_momentum teacher_temp"
  " local_weight gram_weight",
  "config.schedules.learning_rate": "peak final warmup_steps warmup",
  "config.schedules.weight_decay": "start final",
  "config.schedules.teacher_momentum": "start final",
  "config.schedules.teacher_temp": "start final warmup_steps",
  "config.schedules.local_weight": "start final first_step steps",
  "config.schedules.gram_weight": "start final first_step steps",
  "config.optimizer": "b1 b2 eps clip_norm layer_decay patch_embed_lr_scale"
  " freeze_prototypes_steps",
  "config.data": "sources weights batch_size channels max_pixels max_bad_share"
  " accept_changed",
  "config.augment": "global1 global2 local num_local",
  **{f"config.augment.{crop}": _CROP for crop in ("global1", "global2", "local")},
  **{
    f"config.augment.{crop}.{part}": names
    for crop in ("global1", "global2", "local")
    for part, names in (
      ("geometry", "rotate shear perspective dihedral"),
      ("jitter", "prob brightness contrast saturation hue"),
      ("blur", "prob sigma kernel"),
    )
  },
  "config.dense_eval": "train test every k temperature memory crop batch_size",
  "config.knn": "train test every ks temperature resize crop batch_size baselines"
  " linear",
}
OPTIONAL = {
  *("config.heads.ibot", "config.heads.dino.weight_norm"),
  "config.heads.ibot.weight_norm",
}
CHOICES = {
  "config.remat": ("none", "matmuls", "attention", "full"),
  "config.attention": ("auto", "xla", "cpu", "cudnn", "pallas"),
  "config.backbone.ffn": ("mlp", "swiglu"),
  "config.backbone.pool": ("gap", "cls"),
  "config.backbone.dtype": ("float32", "bfloat16"),
  "config.backbone.positions": ("learned", "rope"),
  "config.backbone.qkv_bias": ("all", "no_key", "none"),
  "config.backbone.local_norm": (False, True),
  "config.backbone.rope_periods": ("float32", "bfloat16"),
  "config.backbone.image_dtype": ("uint8", "uint16", "float32"),
  "config.heads.dino.weight_norm": (True, False),
  "config.heads.ibot.weight_norm": (True, False),
  "config.losses.targets": ("sinkhorn", "centering"),
  "config.distill.kind": ("prototypes", "features"),
  "config.schedules.learning_rate.warmup": ("linear", "cosine"),
}
AT_LEAST = {
  "config.unroll": 1,
  "config.accumulation": 1,
  "config.workers": 0,
  "config.log_every": 1,
  "config.pictures.every": 0,
  "config.hang_minutes": 0.0,
  "config.checkpoint.every": 1,
  "config.checkpoint.keep_last": 1,
  "config.checkpoint.keep_best": 0,
  "config.group_size": 2,  # KoLeo needs a neighbour
  "config.backbone.patch_size": 1,
  "config.backbone.pos_grid": 1,
  "config.backbone.width": 1,
  "config.backbone.depth": 1,
  "config.backbone.heads": 1,
  "config.backbone.registers": 0,
  "config.backbone.ffn_width": 0,
  "config.backbone.rope_shift": 0.0,
  "config.backbone.rope_jitter": 1.0,
  "config.backbone.rope_rescale": 1.0,
  "config.backbone.max_value": 0.0,
  "config.total_steps": 1,
  **{
    f"config.schedules.{weight}.{name}": least
    for weight in ("local_weight", "gram_weight")
    for name, least in dict(start=0.0, final=0.0, first_step=0, steps=0).items()
  },
  "config.data.batch_size": 1,
  "config.data.max_pixels": 1,
  "config.augment.num_local": 1,
  "config.gram.crop_size": 0,
  "config.knn.every": 0,
  **{f"config.dense_eval.{name}": 1 for name in ("k", "memory", "batch_size")},
  "config.dense_eval.every": 0,
  "config.knn.batch_size": 1,
  "config.alarm_window": 1,
}

# Values of fields that configs of older checkpoints lack: what their runs did.
ADDED = {
  "config.backbone.mean": (0.485, 0.456, 0.406),
  "config.backbone.std": (0.229, 0.224, 0.225),
  "config.backbone.image_dtype": "uint8",
  "config.backbone.max_value": 0.0,
  "config.data.channels": 3,
  "config.init.run": "",
  "config.init.rgb": (),
  "config.gram": dict(teacher="", refresh_steps=(), crop_size=0),
  "config.distill": dict(
    teacher="", kind="prototypes", backbone={}, heads={}, students={}
  ),
  "config.dense_eval": dict(
    train="",
    test="",
    every=0,
    k=30,
    temperature=0.02,
    memory=200_000,
    crop=224,
    batch_size=64,
  ),
  "config.resolutions": (),
  "config.backbone.positions": "learned",
  "config.backbone.ffn_width": 0,
  "config.backbone.norm_eps": 1e-6,
  "config.backbone.qkv_bias": "all",
  "config.backbone.local_norm": False,
  "config.backbone.rope_shift": 0.0,
  "config.backbone.rope_jitter": 1.0,
  "config.backbone.rope_rescale": 1.0,
  "config.backbone.rope_periods": "float32",
  "config.schedules.learning_rate.warmup": "linear",
  "config.schedules.local_weight": dict(start=1.0, final=1.0, first_step=0, steps=0),
  "config.schedules.gram_weight": dict(start=0.0, final=0.0, first_step=0, steps=0),
}

# Fields of a kind of crop, what must hold for their values, and the same in words.
CROP_LIMITS = (
  ("size", lambda v: v >= 1, "be at least 1 pixel"),
  ("area", lambda v: _rises(v) and v[0] > 0 and v[1] <= 1, "rise within (0, 1]"),
  ("aspect blur.sigma", lambda v: _rises(v) and v[0] > 0, "rise and be above 0"),
  ("geometry.rotate", lambda v: 0 <= v <= 180, "be in [0, 180] degrees"),
  ("geometry.shear", lambda v: 0 <= v <= 45, "be in [0, 45] degrees"),
  ("geometry.perspective", lambda v: 0 <= v <= 0.4, "be in [0, 0.4]"),
  ("geometry.dihedral", lambda v: v in (True, False), "be True or False"),
  ("flip_prob grey_prob solarize_prob", lambda v: 0 <= v <= 1, "be in [0, 1]"),
  ("jitter.prob blur.prob", lambda v: 0 <= v <= 1, "be in [0, 1]"),
  ("jitter.brightness jitter.contrast", lambda v: v >= 0, "be 0 (off) or above"),
  ("jitter.saturation", lambda v: v >= 0, "be 0 (off) or above"),
  ("jitter.hue", lambda v: 0 <= v <= 0.5, "be in [0, 0.5]"),
  ("blur.kernel", lambda v: v > 0 and v % 2 == 1, "be odd, as 9 is"),
)


def _rises(pair) -> bool:
  low, high = pair
  return low <= high < math.inf


def with_added(config: dict) -> dict:
  """A saved config with what has been added since, as far as ADDED says it."""
  config = copy.deepcopy(config)
  for path, value in ADDED.items():
    *groups, name = path.split(".")[1:]
    group = config
    for part in groups:
      group = group.get(part, {})
    group.setdefault(name, value)
    teacher = config.get("distill", {}).get("backbone")
    if groups == ["backbone"] and teacher:
      teacher.setdefault(name, value)
  return config


def has(config, path: str) -> bool:
  """Whether a config has an optional field, and the group of it."""
  *groups, name = path.split(".")[1:]
  for group in groups:
    config = config.get(group, {})
  return name in config


def field(config, path: str):
  """The value at a dotted path that starts with "config"."""
  for name in path.split(".")[1:]:
    config = config[name]
  return config
