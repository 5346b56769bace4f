"""The costliest operations of a step: measured by a trace, beside their roofline."""

import collections
import pathlib
import time

import jax
import jax.numpy as jnp

from dinojax.planning import chips, hlo


def measured(step, folder: pathlib.Path) -> dict[str, float]:
  """Seconds of each HLO operation in one call of `step`, and the trace in `folder`."""
  with jax.profiler.trace(str(folder)):
    step()
  newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
  seconds = collections.Counter()
  for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
    for line in plane.lines:
      # Of a GPU, further lines of the same plane repeat what its streams ran.
      if plane.name.startswith("/device:") and not line.name.startswith("Stream"):
        continue
      for event in line.events:
        name = dict(event.stats).get("hlo_op")
        if name:
          seconds[name] += event.duration_ns / 1e9
  return seconds


def limits(product_flops: float) -> tuple[float, float]:
  """FLOP/s and bytes/s of this device at best.

  By its maker's sheet, where that is known; else `product_flops` and a measured pass
  over an array of 256 MiB, read and written.
  """
  chip = chips.CHIPS.get(jax.devices()[0].device_kind)
  if chip:
    return chip.flops, chip.bandwidth
  x, double = jnp.ones(2**26), jax.jit(lambda x: 2 * x)
  jax.block_until_ready(double(x))
  start = time.perf_counter()
  for _ in range(5):
    x = jax.block_until_ready(double(x))
  return product_flops, 5 * 2 * x.nbytes / (time.perf_counter() - start)


def table(
  seconds: dict[str, float], program: hlo.Program, *, flops: float, bandwidth: float
) -> str:
  """The ten costliest by time, with what they would take at best.

  Args:
    seconds: of `measured`.
    program: the step's.
    flops: of the device per second.
    bandwidth: of its memory, bytes per second.
  """
  best, sources = collections.Counter(), {}
  for run in program.runs():
    name = run.op.name
    if run.op.kind not in hlo.FREE and name in seconds:
      needed = max(program.flops(run) / flops, program.bytes(run) / bandwidth)
      best[name] += needed * run.times
      sources[name] = "/".join(run.op.source.split("/")[-5:])
  total = sum(seconds[name] for name in sources)
  if not total:
    return "the trace names no operation of the step"
  rows = [f"{'ms':>9}{'of all':>8}{'of roofline':>13}  operation"]
  for name in sorted(sources, key=seconds.get, reverse=True)[:10]:
    spent = seconds[name]
    shares = f"{spent / total:8.1%}{best[name] / spent:13.1%}"
    rows.append(f"{1e3 * spent:9.2f}{shares}  {sources[name]}")
  return "\n".join(rows)
