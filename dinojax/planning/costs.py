"""Costs of a training step: FLOPs by formula, time of a compiled program on a chip."""

import collections
import re
from typing import NamedTuple

from dinojax.data import masking
from dinojax.networks import blocks
from dinojax.planning import hlo
from dinojax.runtime import allocator


class Chip(NamedTuple):
  """Limits of one device, from its maker's sheet.

  flops: of bfloat16 matrix products, per second. memory: bytes that a program can have.
  bandwidth: of that memory, bytes per second. network: bytes per second that reach the
  device over all its links to others. between: the same from other slices of TPUs or
  other hosts of GPUs, its share of its host's network cards. clock: cycles per second,
  where the compiler's cycles are known to be of that clock, else 0.
  """

  name: str
  flops: float
  memory: float
  bandwidth: float
  network: float
  between: float
  clock: float


GIB = 2**30


def _gpu(gib: float) -> float:
  """Bytes that JAX takes of a card's."""
  return allocator.GPU_SHARE * gib * GIB


# Between hosts of GPUs: DGX machines, with a network card for each GPU.
CHIPS = {  # by JAX's name of the device
  "TPU v5 lite": Chip("v5e", 197e12, 15.75 * GIB, 819e9, 200e9, 3.125e9, 1.5e9),
  "TPU v5": Chip("v5p", 459e12, 95.74 * GIB, 2765e9, 600e9, 6.25e9, 0),
  "TPU v6 lite": Chip("v6e", 918e12, 31.25 * GIB, 1640e9, 448e9, 12.5e9, 0),
  "NVIDIA A100-SXM4-80GB": Chip("A100", 312e12, _gpu(79.25), 2039e9, 300e9, 25e9, 0),
  "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, _gpu(79.1), 3352e9, 450e9, 50e9, 0),
  "NVIDIA H200": Chip("H200", 989e12, _gpu(141.0), 4800e9, 450e9, 50e9, 0),
  "NVIDIA B200": Chip("B200", 2250e12, _gpu(178.4), 7672e9, 900e9, 50e9, 0),
}


def model_flops(config) -> float:
  """FLOPs of one image in a step: 2 per multiply-add, the backward pass twice.

  What the backward pass recomputes does not count.
  """
  b = config.backbone
  ffn = 8 * b.width**2
  if b.ffn == "swiglu":
    ffn = 3 * b.width * blocks.swiglu_width(b.width)

  def crop(size):
    """(patch embedding, blocks) of one crop."""
    patches = (size // b.patch_size) ** 2
    tokens = patches + 1 + b.registers
    layer = 2 * tokens * (4 * b.width**2 + ffn) + 4 * tokens**2 * b.width
    return 2 * patches * 3 * b.patch_size**2 * b.width, b.depth * layer

  def head(name):
    h = config.heads.get(name, config.heads.dino)
    body = b.width * h.hidden + h.hidden**2 + h.hidden * h.bottleneck
    return 2 * (body + h.bottleneck * h.prototypes)

  def kept(crops):
    """Share of a group's crops that a branch runs on."""
    return blocks.kept_crops(crops, b.drop_path) / crops

  size, views, locals_ = config.group_size, 2, config.augment.num_local
  grid = config.augment.global1.size // b.patch_size
  masks = dict(group_size=size, views=views, grid=grid, **config.masking)
  (embed, layers), (local_embed, local_layers) = (
    crop(config.augment[kind].size) for kind in ("global1", "local")
  )
  shared = views * (embed + head("dino")) + masking.slots(**masks) / size * head("ibot")
  teacher = shared + views * layers
  student = shared + views * kept(size * views) * layers
  student += locals_ * (local_embed + head("dino"))
  student += locals_ * kept(size * locals_) * local_layers
  return teacher + 3 * student


def cost(program: hlo.Program, chip: Chip | None, devices: int) -> dict:
  """FLOPs, traffic and, on a known chip, time of one step of a compiled program."""
  flops = recomputed = seconds = traffic = 0.0
  received, kernels = collections.Counter(), collections.Counter()
  costliest, counted = collections.Counter(), set()
  for run in program.runs():
    op_flops, op_bytes = program.flops(run), program.bytes(run)
    flops += op_flops * run.times
    traffic += op_bytes * run.times
    if "rematted_computation" in run.op.source:
      recomputed += op_flops * run.times
    for kind, size, channel in program.collectives(run):
      if (run.computation, kind, channel) not in counted:
        counted.add((run.computation, kind, channel))
        received[kind] += size * run.times
    if not chip or run.op.kind.endswith(("-start", "-done")):
      continue  # done beside other work, such as fetching for the next op
    by_roofline = max(op_flops / chip.flops, op_bytes / chip.bandwidth)
    if chip.clock and run.op.cycles is not None:
      op_seconds = run.op.cycles / chip.clock
    elif chip.clock and run.op.kind == "custom-call" and op_flops:
      op_seconds = by_roofline
      kernels[run.op.name.split(".")[0]] += op_seconds * run.times
    else:
      op_seconds = 0.0 if chip.clock else by_roofline
    seconds += op_seconds * run.times
    costliest[_short(run.op.source)] += op_seconds * run.times
  result = {
    "hardware_flops": flops * devices,
    "recomputed_flops": recomputed * devices,
    "memory_traffic_bytes": traffic,
    "collective_bytes": dict(received),
  }
  if chip:
    seconds = max(seconds, traffic / chip.bandwidth)
    across = [received.pop(x, 0) for x in (hlo.BETWEEN_SLICES, hlo.BETWEEN_HOSTS)]
    if sum(across):
      result |= {
        "between_seconds": sum(across) / chip.between,
        "between_bandwidth": chip.between,
      }
    result |= {
      "seconds": seconds,
      "seconds_by": "compiler's cycles" if chip.clock else "roofline",
      "kernels_by_roofline": dict(kernels),
      "network_seconds": sum(received.values()) / chip.network,
      "costliest": dict(costliest.most_common(5)),
    }
  return result


def _short(source: str) -> str:
  """'student backward: blocks/mlp/w12/dot_general' of an op's name."""
  part = "teacher, optimiser"
  if "jvp(" in source:
    part = "student backward" if "transpose(jvp" in source else "student forward"
  if "rematted_computation" in source:
    part = "student recomputed"
  noise = re.compile(
    r"jit\(|transpose|jvp|while|body|closed_call|checkpoint|remat|shard_map"
  )
  names = [name for name in source.split("/") if not noise.match(name)]
  return f"{part}: {'/'.join(names[-4:])}"
