"""Students of a distillation: the config of each, from the config of the run.

A run with `config.distill.students` trains several networks on the same batches. Each
has a config of its own, the run's with what `config.distill.students.NAME` says of it,
and a folder of its own in config.workdir, which is like that of any run.

Crops, masks and targets lie on one grid: config.augment's sizes in patches of
config.backbone.patch_size. A network of other patches sees the same crops resized to
that grid: at patches of 14 pixels, crops of 224 in patches of 16 have 196.
"""

import os
import pathlib
import re
from collections.abc import Iterator

from dinojax import config_fields, errors

# What may differ between the students of a run, besides init and learning rate.
GROUPS = ("backbone", "heads", "optimizer", "schedules", "init")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def configs(config) -> dict:
  """The config of each student, by name; {"": config} where one network is trained."""
  found = {}
  for name, own in config.distill.students.items():
    one = config.copy_and_resolve_references()
    with one.unlocked():
      one.distill.students = {}
      one.workdir = os.path.join(config.workdir, name)
      for group, fields in own.items():
        one[group].update(fields)
      _resize(one, before=config.backbone.patch_size)
    found[name] = one
  return found or {"": config}


def instead_of(path: str | os.PathLike) -> str:
  """What to give instead of a distillation's workdir, for an error; "" of any other."""
  path = pathlib.Path(path)
  names = sorted(x.parent.name for x in path.glob("*/checkpoints") if x.is_dir())
  return f"; its students {', '.join(names)} are in {path / names[0]}" if names else ""


def _resize(config, *, before: int) -> None:
  """Puts a config's crops on the same grid in patches of `config.backbone`."""

  def side(pixels):
    return pixels * config.backbone.patch_size // before

  for kind in ("global1", "global2", "local"):
    config.augment[kind].size = side(config.augment[kind].size)
  config.resolutions = tuple(
    row | {k: side(row[k]) for k in ("global_size", "local_size")}
    for row in config.resolutions
  )


def check(config) -> None:
  """Raises UserError for what of config.distill cannot work; not yet of its students.

  Those are checked as the configs that they are, see `configs`.
  """
  group = config.distill
  if not group.teacher:
    for name in ("students", "backbone", "heads"):
      if group[name]:
        raise errors.UserError(
          f"config.distill.{name} needs a teacher; set config.distill.teacher=RUN@STEP,"
          " or a file of weights"
        )
    return
  if config.gram.teacher:
    raise errors.UserError(
      f"config.gram.teacher={config.gram.teacher} has no place in a distillation, whose"
      " teacher is frozen; leave it out, and train a Gram stage afterwards"
    )
  for part in _parts(config):
    _check_fields(config, part)
  _check_names(config)
  if len(group.students) > 1 and config.checkpoint.keep_last < 2:
    raise errors.UserError(
      f"config.checkpoint.keep_last={config.checkpoint.keep_last} must be at least 2"
      " with several students, which are saved one after the other"
    )
  if group.kind == "prototypes" and config.losses.targets != "sinkhorn":
    raise errors.UserError(
      f"config.losses.targets={config.losses.targets} follows a teacher that learns;"
      " distillation by prototypes needs config.losses.targets=sinkhorn"
    )


def check_heads(config) -> None:
  """Raises UserError if a student's prototypes cannot be its teacher's."""
  if config.distill.teacher and config.distill.kind == "prototypes":
    for name in ("dino", "ibot"):
      student, teacher = (
        heads.get(name, heads.dino).prototypes
        for heads in (config.heads, config.distill.heads)
      )
      if student != teacher:
        raise errors.UserError(
          f"config.heads.{name}.prototypes={student} must be the"
          f" {teacher} of its teacher, config.distill.heads.{name}.prototypes"
        )


def _parts(config) -> Iterator[tuple[str, str]]:
  """The groups of config.distill that describe its teacher, as in `FIELDS`."""
  yield "config.distill.backbone", "config.backbone"
  if config.distill.kind == "prototypes":
    for head in config.distill.heads or ("dino",):
      yield f"config.distill.heads.{head}", f"config.heads.{head}"


def _check_fields(config, part) -> None:
  path, like = part
  names = config_fields.FIELDS.get(like, "").split()
  needed = {name for name in names if f"{like}.{name}" not in config_fields.OPTIONAL}
  if not config_fields.has(config, path):
    raise errors.UserError(
      f"{path} is missing; give it as that of the teacher's config"
    )
  found = set(config_fields.field(config, path))
  if not needed <= found <= set(names):
    wrong = sorted((needed - found) | (found - set(names)))
    raise errors.UserError(
      f"{path} must have the fields of {like}, as the teacher's config has; see"
      f" {', '.join(wrong)}"
    )


def _check_names(config) -> None:
  for name, own in config.distill.students.items():
    path = f"config.distill.students.{name}"
    if not NAME.fullmatch(name):
      raise errors.UserError(f"{path}: its name becomes a folder; use letters, digits")
    if not _is_group(own) or not all(map(_is_group, own.values())):
      raise errors.UserError(
        f"{path} must be groups of fields, such as dict(backbone=dict(width=384))"
      )
    for group, fields in own.items():
      if group not in GROUPS:
        raise errors.UserError(f"{path}.{group} must be one of {', '.join(GROUPS)}")
      _check_values(fields, config[group], f"{path}.{group}")
    if "teacher_temp" in own.get("schedules", {}):
      raise errors.UserError(
        f"{path}.schedules.teacher_temp: targets are computed once for all students;"
        " set config.schedules.teacher_temp"
      )


def _is_group(value) -> bool:
  return hasattr(value, "items")


def _check_values(fields, like, path) -> None:
  """Raises UserError for a field that the config lacks, or of another kind."""
  for name, value in fields.items():
    if name not in like:
      raise errors.UserError(
        f"{path}.{name} is not a field; there are {', '.join(like)}"
      )
    usual = like[name]
    if _is_group(usual) and _is_group(value):
      _check_values(value, usual, f"{path}.{name}")
    elif type(value) is not type(usual) and {type(value), type(usual)} != {int, float}:
      raise errors.UserError(
        f"{path}.{name}={value!r} must be a {type(usual).__name__}, such as {usual!r}"
      )
