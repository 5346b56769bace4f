"""Introduction of a run: what is about to run, printed and as an event's fields."""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from dinojax import config_fields, preflight, resolutions, schedules
from dinojax.data import mixture
from dinojax.evals import knn
from dinojax.reporting import console
from dinojax.runtime import gpu_driver


def introduce(
  config,
  mesh: Mesh,
  data: mixture.Mixture,
  *,
  student: Any,
  start: int,
  record: dict | None,
  evaluation: knn.Evaluation | None,
  name: str = "",
  first: bool = True,
) -> dict[str, Any]:
  """Prints what is about to run; returns it for the event of the start.

  Args:
    config: of the run.
    mesh: of all processes.
    data: that is trained on.
    student: its abstract parameters, by network.
    start: completed updates.
    record: of the checkpoint that is restored, or None.
    evaluation: of the run, or None.
    name: of the network, where a run trains several.
    first: whether what concerns the whole run is printed, too.
  """
  parameters = {
    name: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    for name, tree in student.items()
  }
  count, kind = jax.process_count(), jax.devices()[0].device_kind
  label = f"{name}: " if name else ""
  line = (
    f"{label}backbone {parameters['backbone'] / 1e6:,.1f} M parameters, student"
    f" {sum(parameters.values()) / 1e6:,.1f} M"
  )
  doubts = preflight.doubts(config) + gpu_driver.doubts()
  if first:
    line += (
      f"; {mesh.size} x {kind} of"
      f" {'one process' if count == 1 else f'{count} processes'} as"
      f" {dict(mesh.shape)}\n{data}; batches of {config.data.batch_size}; step"
      f" {start:,} of {config.total_steps:,}; workdir {config.workdir}"
    )
  console.say(line)
  say = console.say if first else _unsaid
  for doubt in doubts:
    say(f"warning: {doubt}")
  about = {
    "parameters": parameters,
    "device": kind,
    "mesh": dict(mesh.shape),
    "processes": count,
    "data": str(data),
    "resumed": record is not None,
  }
  if evaluation:
    about["evaluation_images"] = evaluation.images
  if doubts:
    about["doubts"] = doubts
  if start == config.total_steps:
    say(f"complete at step {start}; nothing to train")
  else:
    if (origin := config.init.backbone or config.init.run) and not start:
      say(f"student and teacher start from {origin}")
    if config.distill.teacher:
      say(f"targets are those of {config.distill.teacher}, which is frozen")
    if config.gram.teacher:
      known = record and config_fields.with_added(record["config"])["gram"]["teacher"]
      source = "the checkpoint" if known else config.gram.teacher
      say(f"the Gram teacher is that of {source}")
    if jax.default_backend() == "cpu" and config.backbone.dtype == "bfloat16":
      say("CPUs emulate bfloat16: --config.backbone.dtype=float32 is faster")
    if config.resolutions:
      about["resolutions"] = resolutions.describe(config)
      say("\n".join(about["resolutions"]))
    say("the first step waits for the compiler")
  if record and (line := describe_extension(record["config"], config, start)):
    say(line)
    about["extended"] = line
  return about


def _unsaid(_: str) -> None:
  """Says nothing."""


def describe_extension(before: dict, config, start: int) -> str | None:
  """One line if the run is longer, or shorter, than at its checkpoint."""
  before = config_fields.with_added(before)
  old, new = before["total_steps"], config.total_steps
  change = schedules.describe_change(
    schedules.make_schedules(**before["schedules"], total_steps=old),
    schedules.make_schedules(**config.schedules, total_steps=new),
    step=start,
  )
  return None if old == new else f"extended from {old} to {new} steps; {change}"
