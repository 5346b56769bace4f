"""Workdir of a run: a folder that can be written to, and that is this run's alone.

One run at a time writes there, and its checkpoints are of one config and the same data.
"""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax

from dinojax import config_fields, errors
from dinojax.runtime import ownership

# Fields that change no result of training: a run may resume with others. What the data
# are, and a distillation's teacher, is known by their fingerprints.
FREE_FIELDS = (
  *("workdir", "mesh", "remat", "unroll", "attention", "compiler_options"),
  *(
    "compilation_cache",
    "accumulation",
    "workers",
    "log_every",
    "loggers",
    "pictures",
    "checkpoint",
    "hang_minutes",
  ),
  *("knn", "dense_eval", "alarm_window", "data.sources", "data.max_bad_share"),
  *("data.max_pixels", "data.accept_changed", "extend", "distill.teacher"),
)
# Fields that may change when a run is extended, by config.extend.
LENGTH_FIELDS = (
  *("total_steps", "schedules", "optimizer.freeze_prototypes_steps"),
  "gram.refresh_steps",
)
GRAM_FIELDS = ("gram.teacher", "gram.crop_size")  # where there was no Gram teacher


class Workdir:
  """The folder of one run.

  path: the folder. record: what every checkpoint says of its run, in JSON.
  """

  def __init__(
    self, config, data_fingerprint: list[str], teacher_fingerprint: str | None = None
  ):
    """Creates the folder and writes to it once.

    Args:
      config: of the run.
      data_fingerprint: of its sources.
      teacher_fingerprint: of a distillation's teacher.

    Raises:
      UserError: it cannot be written to.
    """
    self.path = pathlib.Path(config.workdir)
    self.record = {"config": config.to_dict(), "data_fingerprint": data_fingerprint}
    if teacher_fingerprint:
      self.record["teacher_fingerprint"] = teacher_fingerprint
    self._config_json = config.to_json_best_effort(indent=2)
    probe(config.workdir)

  @contextlib.contextmanager
  def owned(self) -> Iterator[None]:
    """Keeps other runs out while the context lasts.

    Raises:
      UserError: another run is at work there; names its host, process and start.
    """
    if jax.process_index() != 0:
      yield
      return
    label = f"config.workdir={self.path}"
    with ownership.owned(self.path, "run", label=label) as self._claim:
      yield

  def write_config(self) -> None:
    """Leaves config.json for people."""
    if jax.process_index() == 0:
      (self.path / "config.json").write_text(self._config_json)

  def check(self, record: dict) -> None:
    """Raises UserError if the record of a checkpoint is of another run."""
    longer = ()
    if self.record["config"]["extend"]:
      before = config_fields.with_added(record["config"])
      longer = LENGTH_FIELDS + (() if before["gram"]["teacher"] else GRAM_FIELDS)
    check_same_run(record, **self.record, free=(*FREE_FIELDS, *longer))
    if record["step"] > self.record["config"]["total_steps"]:
      raise errors.UserError(
        f"config.total_steps={self.record['config']['total_steps']} is below step"
        f" {record['step']}, which config.workdir={self.path} has reached; raise it"
      )

  def check_owned(self) -> None:
    """Raises UserError if the folder was removed, or taken over, meanwhile."""
    if jax.process_index() == 0:
      self._claim.check()


def probe(workdir: str, *, field: str = "config.workdir") -> None:
  """Creates the workdir and writes to it once; raises UserError where it cannot.

  field: where the user sets it, without the dashes of an option.
  """
  if "://" in workdir:
    raise errors.UserError(
      f"{field}={workdir!r} is a bucket; give a folder, or where one is mounted"
    )
  if not errors.is_utf8(workdir):
    raise errors.UserError(
      f"{field}={workdir!r} is not UTF-8, which Orbax needs; choose another name"
    )
  try:
    os.makedirs(workdir, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir) as file:
      file.write(b"\0" * 4096)
      file.flush()
  except OSError as error:
    raise errors.of_disk(error)(
      f"{field}={workdir!r} is not writable ({error.strerror}); choose a folder"
      f" with space and permission: --{field}=FOLDER"
    ) from error


def check_same_run(
  saved: dict,
  *,
  config: dict,
  data_fingerprint: list[str],
  free: tuple[str, ...],
  teacher_fingerprint: str | None = None,
) -> None:
  """Raises UserError, with each field that differs, if the record is of another run.

  Args:
    saved: record of a checkpoint.
    config: of the run that starts.
    data_fingerprint: of its sources, in their order.
    free: fields or groups of the config that may differ, as "data.sources". Data that
      have changed are refused, too, unless config.data.accept_changed.
    teacher_fingerprint: of a distillation's teacher.
  """
  there, here = (config_fields.with_added(x) for x in (saved["config"], config))
  before, now = _fields(there, free), _fields(here, free)
  names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
  if names:
    fields = LENGTH_FIELDS if there["gram"]["teacher"] else LENGTH_FIELDS + GRAM_FIELDS
    length = tuple(f"config.{name}" for name in fields)
    if all(name.startswith(length) for name in names):
      way_out = (
        "to train that run longer, add --config.extend=True, as for a Gram stage: it"
        " resumes from its"
        " newest checkpoint under the new schedules (copy the folder first to keep"
        " both); for a new run choose another config.workdir"
      )
    else:
      way_out = "choose another config.workdir, or remove this one"
    differing = "; ".join(
      f"{name}: {before.get(name)} in the workdir, {now.get(name)} now"
      for name in names
    )
    raise errors.UserError(
      f"config.workdir={config['workdir']} holds another run ({differing}); {way_out}"
    )
  if saved.get("teacher_fingerprint") != teacher_fingerprint:
    raise errors.UserError(
      f"config.distill.teacher={config['distill']['teacher']} has other weights than at"
      f" the checkpoint in config.workdir={config['workdir']}; give the same, of a run"
      " as RUN@STEP, or choose another config.workdir"
    )
  there = saved["data_fingerprint"]
  there = [there] if isinstance(there, str) else there
  changed = {
    f"config.data.sources[{i}]={config['data']['sources'][i]!r}": difference
    for i, pair in enumerate(zip(there, data_fingerprint, strict=False))
    if (difference := data_difference(*pair))
  }
  if changed and not config["data"]["accept_changed"]:
    raise errors.UserError(
      f"{', '.join(changed)} holds other data than at the checkpoint in config.workdir="
      f"{config['workdir']} ({'; '.join(changed.values())}); bring them back, or resume"
      " with the new ones by --config.data.accept_changed=True"
    )


def data_difference(before: str, now: str) -> str:
  """Returns what differs between two fingerprints of a source, see data/files.py.

  Nothing does, "", where it is the times of files: they differ between copies.
  """
  there, here = (
    dict(part.partition("=")[::2] for part in text.split() if "times=" not in part)
    for text in (before, now)
  )
  if there == here:
    return ""
  if ("files" in there) != ("files" in here):
    return "or not: the checkpoint is of a version whose fingerprints do not compare"
  if there.get("files") != here.get("files"):
    return f"{int(there['files']):,} files then, {int(here['files']):,} now"
  if there.get("names") != here.get("names"):
    return "other names of files"
  return "other contents"


def _fields(config: dict, free: tuple[str, ...]) -> dict[str, Any]:
  """{"config.backbone.depth": 24, ...}; tuples as the lists that JSON makes of them."""
  fields = dict(_leaves(json.loads(json.dumps(config)), "config"))
  free_paths = tuple(f"config.{name}." for name in free)
  return {k: v for k, v in fields.items() if not f"{k}.".startswith(free_paths)}


def _leaves(tree: dict, path: str) -> Iterator[tuple[str, Any]]:
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(value, f"{path}.{name}")
    else:
      yield f"{path}.{name}", value
