"""Checks of a config before any work starts, so that a mistake costs seconds.

config_fields.py is the whole config at a glance; experiments/vitg14.py explains it.
Every error names the field, its value, the limit and the way out.
"""

import difflib
import math

from dinojax import channels, config_fields, errors, resolutions, students


def check(config, *, devices: int | None) -> None:
  """Raises UserError for the first field that cannot work.

  devices: how many the run has; None leaves out what depends on that.
  """
  _check_names(config)
  for path, choices in config_fields.CHOICES.items():
    if path in config_fields.OPTIONAL and not config_fields.has(config, path):
      continue
    value = config_fields.field(config, path)
    if value not in choices:
      allowed = ", ".join(map(str, choices))
      raise errors.UserError(f"{path}={value!r} must be one of {allowed}")
  for path, least in config_fields.AT_LEAST.items():
    value = config_fields.field(config, path)
    if not value >= least:
      raise errors.UserError(f"{path}={value} must be at least {least}")
  _check_ranges(config)
  _check_shapes(config)
  _check_kept(config)
  _check_crops(config)
  _check_start(config)
  resolutions.check(config)
  students.check(config)
  channels.check(config)
  if devices is not None:
    _check_batches(config, devices)
  if not config.distill.students:
    students.check_heads(config)
    return
  for name, one in students.configs(config).items():
    try:
      check(one, devices=devices)
    except errors.UserError as error:
      raise errors.UserError(f"config.distill.students.{name}: {error}") from error


def doubts(config) -> list[str]:
  """What of a config works and is hardly meant, a line each."""
  plan, total, lines = config.schedules, config.total_steps, channels.doubts(config)
  if (warmup := plan.teacher_temp.warmup_steps) > total:
    lines.append(
      f"config.schedules.teacher_temp.warmup_steps={warmup} is longer than"
      f" config.total_steps={total}: the teacher temperature never reaches"
      f" {plan.teacher_temp.final}"
    )
  for name in ("local_weight", "gram_weight"):
    weight = plan[name]
    if weight.start != weight.final and weight.first_step + weight.steps > total:
      lines.append(
        f"config.schedules.{name} changes from step {weight.first_step} to"
        f" {weight.first_step + weight.steps}, and config.total_steps={total}: it never"
        f" reaches {weight.final}"
      )
  return lines


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
  for path, names in config_fields.FIELDS.items():
    names = names.split()
    if path in config_fields.OPTIONAL and not config_fields.has(config, path):
      continue
    for name in config_fields.field(config, path):
      if name not in names:
        close = difflib.get_close_matches(name, names, n=1) or names
        raise errors.UserError(
          f"{path}.{name} is not a field; did you mean {' or '.join(close)}?"
        )
    for name in names:
      if (
        name not in config_fields.field(config, path)
        and f"{path}.{name}" not in config_fields.OPTIONAL
      ):
        raise errors.UserError(
          f"{path}.{name} is missing; see experiments/vitg14.py for its meaning"
        )


def _check_ranges(config):
  rate = config.backbone.drop_path
  if not 0 <= rate < 1:
    raise errors.UserError(f"config.backbone.drop_path={rate} must be within [0, 1)")
  eps = config.backbone.norm_eps
  if not 0 < eps <= 0.1:
    raise errors.UserError(f"config.backbone.norm_eps={eps} must be within (0, 0.1]")
  if not config.dense_eval.temperature > 0:
    raise errors.UserError(
      f"config.dense_eval.temperature={config.dense_eval.temperature} must be above 0"
    )
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


def _check_kept(config):
  every = config.checkpoint.every
  for step in config.checkpoint.keep_steps:
    if type(step) is not int or step < 1 or step % every:
      raise errors.UserError(
        f"config.checkpoint.keep_steps={tuple(config.checkpoint.keep_steps)} must be"
        f" multiples of config.checkpoint.every={every}: no other step is saved"
      )


def _check_crops(config):
  for crop in ("global1", "global2", "local"):
    for names, holds, rule in config_fields.CROP_LIMITS:
      for name in names.split():
        path = f"config.augment.{crop}.{name}"
        value = config_fields.field(config, path)
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
  if config.backbone.positions == "rope" and width // heads % 4:
    raise errors.UserError(
      f"config.backbone.heads={heads} gives each {width // heads} channels; rotary"
      " positions (config.backbone.positions=rope) need a multiple of 4"
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
    *(("config.dense_eval.crop",) if config.dense_eval.every else ()),
  ):
    size = config_fields.field(config, path)
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


def _check_start(config):
  """What config.init and config.gram name must not contradict the rest."""
  if config.init.backbone and config.init.run:
    raise errors.UserError(
      f"config.init.backbone={config.init.backbone} and config.init.run="
      f"{config.init.run} exclude each other; name one"
    )
  gram, weight = config.gram, config.schedules.gram_weight
  weighted = weight.final > 0 or weight.start > 0
  if weighted and not gram.teacher:
    raise errors.UserError(
      f"config.schedules.gram_weight.final={weight.final} needs a Gram teacher; set"
      " config.gram.teacher=RUN@STEP, or a file of weights"
    )
  if gram.teacher and not weighted:
    raise errors.UserError(
      f"config.gram.teacher={gram.teacher} without weight changes nothing; set"
      " config.schedules.gram_weight.final, for example to 2.0"
    )
  steps = tuple(gram.refresh_steps)
  whole = all(type(step) is int and step > 0 for step in steps)
  if not whole or list(steps) != sorted(set(steps)) or (steps and not gram.teacher):
    raise errors.UserError(
      f"config.gram.refresh_steps={steps} must be rising steps above 0, with a"
      " config.gram.teacher"
    )
  size, patch = gram.crop_size, config.backbone.patch_size
  least = config.augment.global1.size
  if size and (not gram.teacher or size < least or size % patch):
    raise errors.UserError(
      f"config.gram.crop_size={size} must be 0, or a multiple of"
      f" config.backbone.patch_size={patch} from config.augment.global1.size={least}"
      f" on, with a config.gram.teacher; try {2 * least}"
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
