"""Checks of a config before any work starts, so that a mistake costs seconds.

`FIELDS` is the whole config at a glance; experiments/vitg14.py explains each field.
Every error names the field, its value, the limit and the way out.
"""

import difflib
import math

from dinojax import errors

_CROP = "size area aspect geometry flip_prob jitter grey_prob blur solarize_prob"
_HEAD = "hidden bottleneck prototypes"
FIELDS = {
  "config": "workdir mesh remat unroll attention compiler_options compilation_cache"
  " accumulation workers log_every loggers pictures hang_minutes checkpoint extend seed"
  " group_size init backbone heads losses masking total_steps schedules optimizer data"
  " augment knn alarm_window",
  "config.compiler_options": "cpu gpu tpu",
  "config.mesh": "data fsdp",
  "config.pictures": "every",
  "config.checkpoint": "every keep_last keep_best",
  "config.init": "backbone",
  "config.backbone": "patch_size pos_grid width depth heads ffn registers pool"
  " drop_path layerscale_init dtype",
  "config.heads": "dino ibot",
  **{f"config.heads.{name}": _HEAD for name in ("dino", "ibot")},
  "config.losses": "targets student_temp dino_weight ibot_weight koleo_weight",
  "config.masking": "ratio_min ratio_max",
  "config.schedules": "learning_rate weight_decay teacher_momentum teacher_temp",
  "config.schedules.learning_rate": "peak final warmup_steps",
  "config.schedules.weight_decay": "start final",
  "config.schedules.teacher_momentum": "start final",
  "config.schedules.teacher_temp": "start final warmup_steps",
  "config.optimizer": "b1 b2 eps clip_norm layer_decay patch_embed_lr_scale"
  " freeze_prototypes_steps",
  "config.data": "sources weights batch_size max_pixels max_bad_share accept_changed",
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
  "config.knn": "train test every ks temperature resize crop batch_size baselines"
  " linear",
}
OPTIONAL = {"config.heads.ibot"}
CHOICES = {
  "config.remat": ("none", "matmuls", "attention", "full"),
  "config.attention": ("auto", "xla", "cpu", "cudnn", "pallas"),
  "config.backbone.ffn": ("mlp", "swiglu"),
  "config.backbone.pool": ("gap", "cls"),
  "config.backbone.dtype": ("float32", "bfloat16"),
  "config.losses.targets": ("sinkhorn", "centering"),
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
  "config.total_steps": 1,
  "config.data.batch_size": 1,
  "config.data.max_pixels": 1,
  "config.augment.num_local": 1,
  "config.knn.every": 0,
  "config.knn.batch_size": 1,
  "config.alarm_window": 1,
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


def field(config, path: str):
  """The value at a dotted path that starts with "config"."""
  for name in path.split(".")[1:]:
    config = config[name]
  return config


def check(config, *, devices: int | None) -> None:
  """Raises UserError for the first field that cannot work.

  devices: how many the run has; None leaves out what depends on that.
  """
  _check_names(config)
  for path, choices in CHOICES.items():
    if field(config, path) not in choices:
      raise errors.UserError(
        f"{path}={field(config, path)!r} must be one of {', '.join(choices)}"
      )
  for path, least in AT_LEAST.items():
    if not field(config, path) >= least:
      raise errors.UserError(f"{path}={field(config, path)} must be at least {least}")
  _check_ranges(config)
  _check_shapes(config)
  _check_crops(config)
  if devices is not None:
    _check_batches(config, devices)


def doubts(config) -> list[str]:
  """What of a config works and is hardly meant, a line each."""
  warmup, total = config.schedules.teacher_temp.warmup_steps, config.total_steps
  if warmup <= total:
    return []
  return [
    f"config.schedules.teacher_temp.warmup_steps={warmup} is longer than"
    f" config.total_steps={total}: the teacher temperature never reaches"
    f" {config.schedules.teacher_temp.final}"
  ]


def mesh_shape(
  *, data: int, fsdp: int, devices: int, slices: int = 1, gpus_per_host: int = 0
) -> dict[str, int]:
  """The mesh's axes with -1 filled in.

  Args:
    data: config.mesh.data.
    fsdp: config.mesh.fsdp.
    devices: of all slices.
    slices: TPU slices, between which the network is too slow to gather weights.
    gpus_per_host: 0: no GPUs. With data=-1, fsdp=16 is 8 on hosts of 8 GPUs.

  Raises:
    UserError: the axes don't make up the devices, or "fsdp" leaves a slice.
  """
  if data == -1 and fsdp > 0:
    fsdp = math.gcd(fsdp, gpus_per_host or fsdp)
  shape = {"data": data, "fsdp": fsdp}
  for axis, other in (("data", fsdp), ("fsdp", data)):
    if shape[axis] == -1 and other > 0:
      shape[axis] = devices // other
  if min(shape.values()) < 1 or math.prod(shape.values()) != devices:
    raise errors.UserError(
      f"config.mesh.data={data} times config.mesh.fsdp={fsdp} must be the number of"
      f" devices, {devices}; try data={slices}, fsdp=-1"
    )
  inside = devices // slices
  if inside % shape["fsdp"]:
    fits = math.gcd(inside, shape["fsdp"])
    raise errors.UserError(
      f"config.mesh.fsdp={shape['fsdp']} must divide the {inside} devices of each of"
      f" {slices} slices, within which weights are gathered; try"
      f" data={devices // fits}, fsdp={fits}"
    )
  return shape


def _check_names(config):
  for path, names in FIELDS.items():
    names = names.split()
    if path in OPTIONAL and path.split(".")[-1] not in field(
      config, path[: path.rindex(".")]
    ):
      continue
    for name in field(config, path):
      if name not in names:
        close = difflib.get_close_matches(name, names, n=1) or names
        raise errors.UserError(
          f"{path}.{name} is not a field; did you mean {' or '.join(close)}?"
        )
    for name in names:
      if name not in field(config, path) and f"{path}.{name}" not in OPTIONAL:
        raise errors.UserError(
          f"{path}.{name} is missing; see experiments/vitg14.py for its meaning"
        )


def _check_ranges(config):
  rate = config.backbone.drop_path
  if not 0 <= rate < 1:
    raise errors.UserError(f"config.backbone.drop_path={rate} must be within [0, 1)")
  low, high = config.masking.ratio_min, config.masking.ratio_max
  if not 0 < low <= high < 1:
    raise errors.UserError(
      f"config.masking.ratio_min={low} and ratio_max={high} must rise within (0, 1)"
    )
  warmup = config.schedules.learning_rate.warmup_steps
  if not 0 <= warmup < config.total_steps:
    raise errors.UserError(
      f"config.schedules.learning_rate.warmup_steps={warmup} must be below"
      f" config.total_steps={config.total_steps}"
    )
  frozen = config.optimizer.freeze_prototypes_steps
  if not 0 <= frozen < config.total_steps:
    raise errors.UserError(
      f"config.optimizer.freeze_prototypes_steps={frozen} must be below"
      f" config.total_steps={config.total_steps}, or prototypes never learn; try"
      f" {config.total_steps // 100}"
    )
  every = config.checkpoint.every
  if config.knn.every % every:
    raise errors.UserError(
      f"config.knn.every={config.knn.every} must be a multiple of"
      f" config.checkpoint.every={every}, so that the best checkpoint is a saved one;"
      f" try {-(-config.knn.every // every) * every}"
    )


def _check_crops(config):
  for crop in ("global1", "global2", "local"):
    for names, holds, rule in CROP_LIMITS:
      for name in names.split():
        path = f"config.augment.{crop}.{name}"
        value = field(config, path)
        try:
          fits = holds(value)
        except (TypeError, ValueError):  # of another kind, or no pair
          fits = False
        if not fits:
          raise errors.UserError(f"{path}={value} must {rule}")


def _check_shapes(config):
  width, heads = config.backbone.width, config.backbone.heads
  if width % heads:
    raise errors.UserError(
      f"config.backbone.width={width} must be a multiple of"
      f" config.backbone.heads={heads}"
    )
  knn = config.knn
  if knn.every and not (knn.crop <= knn.resize and knn.ks and min(knn.ks) >= 1):
    raise errors.UserError(
      f"config.knn.crop={knn.crop} must be at most config.knn.resize={knn.resize}, and"
      f" config.knn.ks={tuple(knn.ks)} must name at least one number of neighbours"
    )
  patch = config.backbone.patch_size
  for path in (
    *("config.augment.global1.size", "config.augment.global2.size"),
    *("config.augment.local.size", "config.knn.crop"),
  ):
    size = field(config, path)
    if size < patch or size % patch:
      raise errors.UserError(
        f"{path}={size} must be a multiple of config.backbone.patch_size={patch}; try"
        f" {max(-(-size // patch), 1) * patch}"
      )
  if config.augment.global1.size != config.augment.global2.size:
    raise errors.UserError(
      f"config.augment.global2.size={config.augment.global2.size} must equal"
      f" config.augment.global1.size={config.augment.global1.size}"
    )


def _check_batches(config, devices):
  size, group, parts = config.data.batch_size, config.group_size, config.accumulation
  unit = group * devices * parts
  if size % unit:
    fits = math.gcd(size // (devices * parts), group)
    divides = size % (devices * parts * fits) == 0
    other = f", or config.group_size={fits}" if divides else ""
    raise errors.UserError(
      f"config.data.batch_size={size} must be a multiple of {unit} (config.group_size="
      f"{group} times {devices} devices times config.accumulation={parts}); try"
      f" {-(-size // unit) * unit}{other if fits > 1 else ''}"
    )
  size = config.knn.batch_size
  if config.knn.every and size % devices:
    raise errors.UserError(
      f"config.knn.batch_size={size} must be a multiple of {devices} devices; try"
      f" {-(-size // devices) * devices}"
    )
