"""A plan as text: the table of one, and a line for each of a search."""

from dinojax.networks import blocks
from dinojax.planning import hlo

GIB = 2**30


def table(plan: dict) -> str:
  """The rows of a plan, as `plan.make_plan` returns it."""
  rows = [("machine", plan["devices"]), ("mesh", plan["mesh"])]
  rows += [("batch, remat", f"{plan['batch_size']:,}, {plan['remat']}")]
  limit = plan.get("memory_bytes")
  memory = f"{plan['peak_bytes'] / GIB:.2f} GiB" + (
    f" of {limit / GIB:.2f} GiB" if limit else ""
  )
  if not plan["fits"]:
    rows += [
      ("peak memory per device", f"{memory}: does not fit"),
      ("missing", f"{plan['missing_bytes'] / GIB:.2f} GiB"),
      ("what helps", advice(plan)),
    ]
  if "parameters" not in plan:
    return lines(rows)
  rows += [
    *((f"parameters, {k}", f"{v:,}") for k, v in plan["parameters"].items()),
    ("parameters, student", f"{sum(plan['parameters'].values()):,}"),
    ("state per device", f"{plan['state_bytes'] / GIB:.2f} GiB"),
  ]
  if plan["fits"]:
    rows.append(("peak memory per device", memory))
  rows += [
    (f"  beside the step: {name}", f"{size / GIB:.2f} GiB")
    for name, size in plan["other_peak_bytes"].items()
  ]
  rows += _flops(plan)
  rows += [
    *(
      (f"{kind}, per device", f"{size / GIB:.2f} GiB")
      for kind, size in plan["collective_bytes"].items()
    ),
    ("compilation", f"{plan['compile_seconds']:.0f} s"),
  ]
  if "seconds" in plan:
    rows += _times(plan)
  return lines(rows)


def _flops(plan):
  needed, recomputed = plan["model_flops"], plan["recomputed_flops"]
  overhead = plan["hardware_flops"] - recomputed - needed
  return [
    ("FLOPs of one step, all devices", f"{plan['hardware_flops']:.3e}"),
    ("  needed by the method", f"{needed:.3e}"),
    ("  recomputed in the backward pass", f"{recomputed:.3e}"),
    (
      "  overhead, such as padding",
      f"{overhead:.3e}, {overhead / needed:.1%} of needed",
    ),
  ]


def _times(plan):
  rows = [
    (f"step, by {plan['seconds_by']}", f"{plan['seconds']:.3f} s"),
    *(
      (f"  of this {name}, by roofline", f"{seconds:.3f} s")
      for name, seconds in plan["kernels_by_roofline"].items()
    ),
    ("network, if nothing hides it", f"{plan['network_seconds']:.3f} s"),
  ]
  if "between_seconds" in plan:
    of_slices = hlo.BETWEEN_SLICES in plan["collective_bytes"]
    where = hlo.BETWEEN_SLICES if of_slices else hlo.BETWEEN_HOSTS
    speed = f"{plan['between_bandwidth'] / 1e9:g} GB/s a device"
    rows += [
      (f"{where}, if nothing hides it", f"{plan['between_seconds']:.3f} s, at {speed}")
    ]
  if "exposed_seconds" in plan:
    exposed = f"{plan['exposed_seconds']:.3f} s"
    rows += [("network, not hidden in XLA's order", exposed)]
  return [
    *rows,
    ("share of peak FLOP/s", f"{plan['share_of_peak']:.1%}"),
    ("images per second", f"{plan['images_per_second']:,.0f}"),
    ("whole schedule", f"{plan['days']:.1f} days"),
    ("device-days", f"{plan['device_days']:,.0f}"),
    ("costliest operations", ""),
    *((f"  {s:.3f} s", name) for name, s in plan["costliest"].items()),
  ]


def mean_of_rows(plan: dict) -> list[tuple]:
  """What the rows of `plan.of_rows` are together."""
  fits = "" if plan["fits"] else ": does not fit"
  peak = f"{plan['peak_bytes'] / GIB:.2f} GiB{fits}"
  rows = [(f"all {len(plan['rows'])} resolutions: peak memory", peak)]
  if "seconds" in plan:
    rows += [
      ("  mean step", f"{plan['seconds']:.3f} s"),
      ("  whole schedule", f"{plan['days']:.1f} days"),
    ]
  return rows


def lines(rows: list[tuple]) -> str:
  """(what, value) each, as two columns."""
  return "\n".join(f"{name:36} {value}".rstrip() for name, value in rows)


def advice(plan: dict) -> str:
  """What to change where memory is missing."""
  policies = list(blocks.REMAT)
  rest = policies[policies.index(plan["remat"]) + 1 :]
  ways = [f"--config.remat={rest[0]}"] if rest else []
  data, fsdp = plan["mesh"]["data"], plan["mesh"]["fsdp"]
  if data % (2 * plan["slices"]) == 0:
    ways.append(f"--config.mesh.data={data // 2} --config.mesh.fsdp={fsdp * 2}")
  logits = plan["logits_bytes"]
  if logits > plan["memory_bytes"] / 4:  # targets take as much again
    ways.append(
      "a smaller --config.data.batch_size, or more devices: the teacher's logits of the"
      f" whole batch take {logits / GIB:.0f} GiB, whatever config.accumulation"
    )
  else:
    ways.append("a larger --config.accumulation, or a smaller --config.data.batch_size")
  return ", or ".join(ways)


def search_line(plan: dict) -> str:
  """What was tried, memory, time, and whether it fits."""
  fits = "fits" if plan["fits"] else f"{plan['missing_bytes'] / GIB:.1f} GiB missing"
  seconds = f"{plan['seconds']:.3f} s" if "seconds" in plan else "-"
  if "exposed_seconds" in plan:
    seconds += f" + {plan['exposed_seconds']:.3f} s of waiting"
  mesh = "x".join(str(n) for n in plan["mesh"].values())
  memory = f"{plan['peak_bytes'] / GIB:.2f} GiB"
  return (
    f"mesh {mesh:8} remat {plan['remat']:10} unroll {plan['unroll']} {memory:>10}"
    f" {seconds:>8}  {fits}"
  )


def ranking(plans: list[dict]) -> str:
  """The plans of a search, best first, and what ranks them."""
  timed = any("seconds" in plan for plan in plans)
  order = "step time" if timed else "recomputed FLOPs, since times are not known here"
  heading = f"ranked by what fits, then {order}, then memory:"
  return "\n".join([heading, *map(search_line, plans)])
