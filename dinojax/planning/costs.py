"""Costs of a training step: FLOPs by formula, time of a compiled program on a chip."""

import collections
import re

from dinojax.data import masking
from dinojax.networks import blocks
from dinojax.planning import chips, hlo, schedule


def model_flops(config) -> float:
  """FLOPs of one image in a step: 2 per multiply-add, the backward pass twice.

  What the backward pass recomputes does not count.
  """
  b = config.backbone
  hidden = blocks.hidden_width(b.width, ffn=b.ffn, ffn_width=b.ffn_width)
  ffn = {"mlp": 2, "swiglu": 3}[b.ffn] * b.width * hidden

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
  gram = 0
  if config.gram.teacher:
    tokens = grid**4 * b.width  # multiply-adds of a crop's Gram matrix
    _, gram_layers = crop(config.gram.crop_size or config.augment.global1.size)
    # The Gram teacher's forward pass and matrix; the student's matrix, and back.
    gram = views * (embed + gram_layers + (1 + 3) * 2 * tokens)
  return teacher + 3 * student + gram


def cost(program: hlo.Program, chip: chips.Chip | None, devices: int) -> dict:
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
    by_roofline = schedule.roofline(op_flops, op_bytes, chip)
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
    if received and program.gpus_per_host:
      result["exposed_seconds"] = schedule.exposed(program, chip)
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
