"""Images per second of the training step, beside plain PyTorch and the device's peak.

  python tests/bench/step.py --config=experiments/vits14.py --batch=64
  python tests/bench/step.py --config=experiments/vitg14.py --batch=32 --apart
  python tests/bench/step.py --small

Runs the real `dino.train_step` of a config on all devices of this machine, on random
pixels. The peer is torch_step.py: the same method, config and host batch, on one
device. The peak is a large matrix product in the config's dtype, timed after each step
on either side; the greater of the two medians counts for both. FLOPs are the model's
own, counted by hand: recomputation is not work.

The peer has a process of its own and takes turns with us step by step: whatever else
the machine does, it does to both. Neither reserves memory ahead. Where both don't fit
the device at once, --apart ends the peer before our own state is made.

On a CPU that others use too, PyTorch's threads spin while they wait for one another,
which costs it a factor of 4. Pin both sides to one core, and read CPU time:

  taskset -c 0 python tests/bench/step.py --small
"""

import argparse
import importlib.util
import json
import math
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import costliest
import torch_peer
import workload

from dinojax import assembly, errors, preflight, sharding
from dinojax.planning import costs, hlo
from dinojax.runtime import allocator


class Ours:
  """Our step on all devices; each turn times one step and one product."""

  def __init__(self, config, batch, *, side):
    self.mesh = sharding.make_mesh(**config.mesh)
    self.run = assembly.assemble(config, self.mesh)
    self.key = jax.random.key(0)
    groups = config.data.batch_size // config.group_size
    positions = sharding.local_positions(self.mesh, groups)
    with jax.set_mesh(self.mesh):
      self.state = self.run.init(self.key)
      self.batch = sharding.put_batch(self.mesh, batch, positions, groups)
    self.matrix = jax.random.normal(self.key, (side, side), config.backbone.dtype)
    self.product = jax.jit(lambda x: x @ x)

  def step(self):
    """One update; its scalars."""
    with jax.set_mesh(self.mesh):
      self.state, scalars = self.run.train_step(self.state, self.batch, self.key)
    return scalars

  def turn(self) -> dict:
    """As `torch_peer.Peer.turn`."""
    seconds, cpu_seconds, scalars = timed(self.step)
    product_seconds, _, _ = timed(self.product, self.matrix)
    memory = jax.local_devices()[0].memory_stats() or {}
    return {
      "step": seconds,
      "cpu": cpu_seconds,
      "product": product_seconds,
      "loss": float(scalars["loss"]),
      "peak": memory.get("peak_bytes_in_use") or torch_peer.host_peak(os.getpid()),
    }

  def profile(self, folder: str, product_flops: float) -> str:
    """Writes a trace of one step, and returns the table of its costliest operations."""
    with jax.set_mesh(self.mesh):
      program = hlo.Program(self.run.lower_step().compile().as_text())
    jax.block_until_ready(self.step())
    seconds = costliest.measured(
      lambda: jax.block_until_ready(self.step()), pathlib.Path(folder)
    )
    flops, bandwidth = costliest.limits(product_flops)
    return costliest.table(seconds, program, flops=flops, bandwidth=bandwidth)

  def close(self):
    """Nothing: the process ends with the table."""


def torch_device() -> str:
  """PyTorch's name of the kind of device that JAX found."""
  return "cuda" if jax.default_backend() == "gpu" else "cpu"


def timed(function, *args):
  """Seconds until the result is there, by the wall and of the CPU, and the result."""
  cpu, wall = time.process_time(), time.perf_counter()
  result = jax.block_until_ready(function(*args))
  return time.perf_counter() - wall, time.process_time() - cpu, result


def measure(makers: dict, steps: int, *, apart: bool) -> dict:
  """Turns of each side by name: the first, which compiles, one more, then `steps`."""
  turns = {name: [] for name in makers}
  for names in [[name] for name in makers] if apart else [list(makers)]:
    sides = {name: makers[name]() for name in names}
    for i in range(steps + 2):
      for name in names[:: -1 if i % 2 else 1]:
        turns[name].append(sides[name].turn())
        if not math.isfinite(turns[name][-1]["loss"]):
          sys.exit(f"the loss of {name} is not finite: not a step worth timing")
    for side in sides.values():
      side.close()
  return turns


def summarize(turns: list, config, *, side: int, devices: int) -> dict:
  """Numbers of one side."""
  seconds = [turn["step"] for turn in turns[2:]]
  product = statistics.median(turn["product"] for turn in turns[2:])
  images = config.data.batch_size / statistics.median(seconds)
  return {
    "first_call_s": turns[0]["step"],
    "step_s": statistics.median(seconds),
    "fastest_s": min(seconds),
    "slowest_s": max(seconds),
    "cpu_s": statistics.median(turn["cpu"] for turn in turns[2:]),
    "images_per_s": images,
    "model_flops_per_s": images * costs.model_flops(config),
    # The product runs on one device; the step on all.
    "product_flops_per_s": 2 * side**3 / product * devices,
    "peak_bytes": turns[-1]["peak"],
  }


def table(results: dict) -> str:
  """One column a side; with two, the first over the second."""
  columns = list(results.values())
  ceiling = max(side["product_flops_per_s"] for side in columns)

  def row(name, show, ratio=None):
    cells = "".join(f"{show(side):>14}" for side in columns)
    if ratio and len(columns) == 2:
      ours, theirs = (side[ratio] for side in columns)
      cells += f"{ours / theirs:8.2f}" if ours and theirs else ""
    return f"{name:32}{cells}"

  heading = "".join(f"{name:>14}" for name in results)
  return "\n".join(
    [
      " " * 32 + heading + ("   ratio" if len(columns) == 2 else ""),
      row("first call, with compilation, s", lambda c: f"{c['first_call_s']:.1f}"),
      row("step, median, s", lambda c: f"{c['step_s']:.3f}", "step_s"),
      row(
        "step, fastest to slowest, s",
        lambda c: f"{c['fastest_s']:.3f}-{c['slowest_s']:.3f}",
      ),
      row("CPU time of a step, median, s", lambda c: f"{c['cpu_s']:.3f}", "cpu_s"),
      row("images per second", lambda c: f"{c['images_per_s']:.2f}", "images_per_s"),
      row("model FLOP/s", lambda c: f"{c['model_flops_per_s']:.3e}"),
      row("matrix product, FLOP/s", lambda c: f"{c['product_flops_per_s']:.3e}"),
      row(
        "share of the greater product",
        lambda c: f"{c['model_flops_per_s'] / ceiling:.1%}",
      ),
      row(
        "peak memory, GiB",
        lambda c: f"{c['peak_bytes'] / 2**30:.2f}" if c["peak_bytes"] else "unknown",
        "peak_bytes",
      ),
    ]
  )


def parse_args():
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="experiments/vits14.py", help="experiment")
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="FIELD=VALUE",
    help="overrides a field of the config, for example backbone.drop_path=0.0",
  )
  parser.add_argument(
    "--small",
    action="store_true",
    help="4 blocks of width 192 on 112 and 56 px crops in float32, for two CPU cores",
  )
  parser.add_argument(
    "--batch", type=int, help="images of the global batch; default 64, 16 if --small"
  )
  parser.add_argument("--steps", type=int, default=10, help="steps that count")
  parser.add_argument(
    "--matmul", type=int, default=4096, help="side of the peak product"
  )
  parser.add_argument(
    "--peer",
    choices=("torch", "none"),
    help="default: torch where it is installed and there is one device",
  )
  parser.add_argument(
    "--compile",
    choices=("yes", "no"),
    help="whether the peer uses torch.compile; default: on a GPU alone, since on a CPU"
    " it takes minutes to compile and steps are no faster",
  )
  parser.add_argument(
    "--apart", action="store_true", help="time the peer first and ourselves after it"
  )
  parser.add_argument(
    "--profile",
    metavar="DIR",
    help="also writes a trace of one step there, and prints the ten operations that"
    " took longest, each with the share of it that it would take at best",
  )
  parser.add_argument("--json", metavar="FILE", help="also writes the numbers there")
  args = parser.parse_args()
  devices = jax.device_count()
  if args.peer is None:
    found = importlib.util.find_spec("torch") and devices == 1
    args.peer = "torch" if found else "none"
  if args.peer == "torch" and devices > 1:
    sys.exit(
      f"--peer=torch runs on one device, not {devices}; show one alone, for example by"
      " CUDA_VISIBLE_DEVICES=0, or pass --peer=none"
    )
  if args.steps < 1:
    sys.exit(f"--steps={args.steps} must be at least 1")
  if args.compile is None:
    args.compile = "yes" if torch_device() == "cuda" else "no"
  return args


def main():
  """Prints the table."""
  allocator.keep_pages()  # as training does
  args = parse_args()
  config = workload.load_config(
    args.config, batch=args.batch, small=args.small, assignments=args.set
  )
  devices = jax.device_count()
  try:
    preflight.check(config, devices=devices)
  except errors.UserError as e:
    sys.exit(str(e))
  batch = workload.random_batch(config, np.random.default_rng(0))
  side, compiled = args.matmul, args.compile == "yes"
  # With --apart the first ends before the second begins: only ours stays to the end.
  makers = {"dinojax": lambda: Ours(config, batch, side=side)}
  if args.peer == "torch":
    options = dict(side=side, compiled=compiled, device=torch_device())
    peer = {"PyTorch": lambda: torch_peer.Peer(config, batch, **options)}
    makers = {**peer, **makers}
  turns = measure(makers, args.steps, apart=args.apart)
  results = {
    name: summarize(turns[name], config, side=side, devices=devices)
    for name in ("dinojax", "PyTorch")
    if name in turns
  }
  c = config.backbone
  settings = {
    "config": " ".join([args.config, *(["--small"] if args.small else []), *args.set]),
    "devices": f"{devices} x {jax.devices()[0].device_kind}",
    "backbone": f"{c.depth} blocks of {c.width}, drop path {c.drop_path}, {c.dtype}",
    "batch, remat": f"{config.data.batch_size}, {config.remat}",
    "model FLOPs per image": f"{costs.model_flops(config):.3e}",
    "side of the matrix product": str(side),
  }
  if args.peer == "torch":
    settings["peer"] = f"torch.compile {'on' if compiled else 'off'}, " + (
      "before ours" if args.apart else "in turns with ours"
    )
  for name, value in settings.items():
    print(f"{name:32}{value}")
  print("\n" + table(results))
  if args.profile:
    ours = Ours(config, batch, side=side)
    print("\n" + ours.profile(args.profile, results["dinojax"]["product_flops_per_s"]))
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps({**settings, **results}, indent=2))


if __name__ == "__main__":
  main()
