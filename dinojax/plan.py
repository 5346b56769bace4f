"""Plan of a run: memory, time and network traffic of its real training step, compiled.

  python -m dinojax.plan --config=experiments/vitg14.py --topology=v5e:8x16
  python -m dinojax.plan --config=experiments/vitg14.py --topology=v5p:4x4x8 --search

The machine need not be there: with `pip install -e '.[plan]'`, XLA compiles for TPU
slices by name (v5e:8x16, v5p:4x4x8, v6e:8x16 have 128 chips), with --slices=2 for two
of them. Without --topology the plan is for the devices of this machine. Nothing runs
but the compiler, some minutes for a large model; the config can be overridden as in
training. With --sample=SOURCE of images like the run's, the input is timed on this
machine, and the plan lists how many cores a host needs. A run of several resolutions
(config.resolutions) has a plan for each row, and one line for their mean.
"""

import math
import sys
import time

import jax
from absl import flags

from dinojax import assembly, durable, errors, preflight, resolutions, sharding
from dinojax.commands import cli
from dinojax.networks import blocks
from dinojax.planning import chips, costs, hlo, input_plan, memory, text, topology
from dinojax.reporting import console

flags.declare_key_flag("config")  # so that --help shows it
TOPOLOGY = flags.DEFINE_string("topology", None, "TPUs (v5e:8x16) or GPUs (h100:16x8).")
SLICES = flags.DEFINE_integer(
  "slices", 1, "How many such slices, joined over the data center's network."
)
JSON = flags.DEFINE_string("json", None, "Also writes the plan to this file.")
SAMPLE = flags.DEFINE_string("sample", None, "Source of images to time the input on.")
SEARCH = flags.DEFINE_bool(
  "search", False, "Tries remat policies, mesh splits and scan settings; ranks them."
)


def make_plan(config, devices, *, step_only: bool = False) -> dict:
  """Compiles the step and reads off the program what it costs, per step.

  Args:
    config: of the run, of one resolution.
    devices: of the run; they need not be there.
    step_only: leaves out the memory of what a run compiles besides its step.

  Returns:
    The plan as JSON; where memory does not suffice, {"fits": False, "missing_bytes"}
    and little else, since the compiler gives up.
  """
  preflight.check(config, devices=len(devices))
  mesh = sharding.make_mesh(**config.mesh, devices=devices)
  run = assembly.assemble_run(config, mesh)
  with jax.set_mesh(mesh):
    plan = plan_step(config, mesh, run.lower_step())
    if "compile_seconds" not in plan:
      return plan
    others = {} if step_only else memory.beside_the_step(config, run, mesh)
  parameters = {
    f"{name} {part}".strip(): sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    for name, one in run.members.items()
    for part, tree in one.abstract_state.student.items()
  }
  return {
    **plan,
    **_room(devices, plan["peak_bytes"], *others.values()),
    "parameters": parameters,
    "state_bytes": memory.on_device(run.abstract_state),
    "other_peak_bytes": others,
  }


def plan_step(config, mesh, step: jax.stages.Lowered) -> dict:
  """Compiles a step and reads off the program what it costs: a part of `make_plan`.

  Args:
    config: of the run, of one resolution.
    mesh: of devices that need not be there.
    step: one step of the run, lowered.
  """
  devices = list(mesh.devices.flat)
  chip = chips.CHIPS.get(devices[0].device_kind)
  start = time.perf_counter()
  plan = {
    "devices": f"{len(devices)} x {chip.name if chip else devices[0].device_kind}",
    "slices": sharding.slice_count(devices),
    "mesh": dict(mesh.shape),
    "remat": config.remat,
    "unroll": config.unroll,
    "batch_size": config.data.batch_size,
    "logits_bytes": memory.teacher_logits(config) // len(devices),
    "fits": True,
  }
  try:
    compiled = topology.compile_for(devices, step)
  except jax.errors.JaxRuntimeError as error:
    if (found := memory.exhausted(str(error))) is None:
      raise
    needed, limit = found
    return {
      **plan,
      "fits": False,
      "peak_bytes": needed,
      "memory_bytes": limit,
      "missing_bytes": needed - limit,
    }
  plan["compile_seconds"] = time.perf_counter() - start
  plan["peak_bytes"] = memory.peak(compiled)
  plan |= _room(devices, plan["peak_bytes"])
  plan["model_flops"] = costs.model_flops(config) * config.data.batch_size
  program = hlo.Program(
    compiled.as_text(), gpus_per_host=sharding.gpus_per_host(devices)
  )
  plan |= costs.cost(program, chip, len(devices))
  if "seconds" in plan:
    rate = config.data.batch_size / plan["seconds"]
    days = config.total_steps * plan["seconds"] / 86_400
    plan |= {"images_per_second": rate, "days": days}
    plan |= {"device_days": days * len(devices)}
    peak = chip.flops * len(devices)
    plan["share_of_peak"] = plan["model_flops"] / plan["seconds"] / peak
  return plan


def _room(devices, *peaks: int) -> dict:
  """Whether programs with these peaks in bytes fit; {} on devices not known here."""
  if not (chip := chips.CHIPS.get(devices[0].device_kind)):
    return {}
  missing = max(max(peaks) - chip.memory, 0)
  return dict(memory_bytes=chip.memory, fits=not missing, missing_bytes=missing)


def of_rows(plans: list[dict], shares: list[float], total_steps: int) -> dict:
  """The plan of a run of several resolutions, from one of each and their shares."""
  plan = {
    "rows": plans,
    "shares": shares,
    "fits": all(row["fits"] for row in plans),
    "peak_bytes": max(row["peak_bytes"] for row in plans),
  }
  if all("seconds" in row for row in plans):
    step = sum(share * row["seconds"] for share, row in zip(shares, plans, strict=True))
    plan |= {"seconds": step, "days": total_steps * step / 86_400}
  return plan


def search(config, devices) -> list[dict]:
  """Plans remat policies, then mesh splits, then scan settings; the best one first.

  Each with the best of what came before: a search along one axis after the other, since
  every plan is a compilation.
  """
  inside = len(devices) // sharding.slice_count(devices)
  splits = [n for n in (1, 4, 8, 16, 32, 64, 128, 256) if inside % n == 0]
  meshes = [dict(data=len(devices) // fsdp, fsdp=fsdp) for fsdp in splits]
  plans = []
  for field, values in (("remat", blocks.REMAT), ("mesh", meshes), ("unroll", (1, 2))):
    best = plans[0] if plans else {}
    for value in values:
      if best.get(field) == value:
        continue
      with config.unlocked():
        config.update({k: best[k] for k in ("remat", "mesh", "unroll") if k in best})
        config[field] = value
      plans.append(make_plan(config, devices, step_only=True))
      print(text.search_line(plans[-1]), file=sys.stderr, flush=True)
    plans.sort(key=rank)
  return plans


def rank(plan: dict) -> tuple:
  """Sorts what fits first; by time, or on an unknown chip by recomputed FLOPs."""
  slow = plan.get("seconds", plan.get("recomputed_flops", math.inf))
  slow += plan.get("exposed_seconds", 0.0)
  return not plan["fits"], slow, plan["peak_bytes"]


def plan_and_print(config, devices) -> dict:
  """The plan of a config of one resolution, with its input."""
  measured = input_plan.measure(config, SAMPLE.value) if SAMPLE.value else None
  plan = make_plan(config, devices)
  hosts = len({device.process_index for device in devices})
  plan["input"] = input_plan.needs(config, plan, hosts=hosts, measured=measured)
  print(text.table(plan), text.lines(input_plan.rows(plan["input"])), sep="\n")
  return plan


def main(_) -> None:
  """Prints the plan, or the ranking of the search."""
  config = cli.CONFIG.value
  durable.check_file(JSON.value, flag="--json", example="plan.json")
  if TOPOLOGY.value:
    devices = topology.devices(TOPOLOGY.value, slices=SLICES.value)
  elif SLICES.value != 1:
    raise errors.UserError(f"--slices={SLICES.value} needs --topology=SLICE")
  else:
    devices = jax.devices()
  for_what = f"{len(devices)} x {devices[0].device_kind}"
  console.say(f"compiling for {for_what}: some minutes, for a large model")
  preflight.check(config, devices=len(devices))
  rows = resolutions.configs(config)
  if SEARCH.value:
    result = search(max(rows, key=costs.model_flops), devices)
    print(text.ranking(result))
  elif config.resolutions:
    plans = []
    for line, row in zip(resolutions.describe(config), rows, strict=True):
      print(line)
      plans.append(plan_and_print(row, devices))
      print()
    result = of_rows(plans, resolutions.shares(config), config.total_steps)
    print(text.lines(text.mean_of_rows(result)))
  else:
    result = plan_and_print(config, devices)
  if JSON.value:
    durable.write_json(JSON.value, result, flag="--json")


if __name__ == "__main__":
  cli.run(main, on_interrupt="ended; the plan is not complete")
