"""Costs of a training step: FLOPs by formula, time of a compiled program on a chip."""

import collections
import re

from dinojax import students
from dinojax.data import masking
from dinojax.networks import blocks
from dinojax.planning import chips, hlo, schedule


def model_flops(config) -> float:
  """FLOPs of one image in a step: 2 per multiply-add, the backward pass twice.

  What the backward pass recomputes does not count.
  """
  group = config.distill
  if group.teacher:
    taught = _teacher_flops(config, group.backbone, group.heads)
  else:
    taught = _teacher_flops(config, config.backbone, config.heads) + _gram_flops(config)
  learnt = sum(map(_student_flops, students.configs(config).values()))
  return taught + 3 * learnt


def _crop_flops(backbone, patches: int) -> tuple[float, float]:
  """Of a crop's patch embedding, and of its blocks, forward."""
  b = backbone
  hidden = blocks.hidden_width(b.width, ffn=b.ffn, ffn_width=b.ffn_width)
  ffn = {"mlp": 2, "swiglu": 3}[b.ffn] * b.width * hidden
  tokens = patches + 1 + b.registers
  layer = 2 * tokens * (4 * b.width**2 + ffn) + 4 * tokens**2 * b.width
  return 2 * patches * 3 * b.patch_size**2 * b.width, b.depth * layer


def _head_flops(config, backbone, fields) -> tuple[float, float]:
  """Of the heads: of a crop's image feature, and of an image's patches."""
  width = backbone.width
  if config.distill.teacher and config.distill.kind == "features":
    if backbone is config.distill.backbone:
      return 0.0, 0.0
    projection = 2 * width * (width + config.distill.backbone.width)
    return projection, 2 * _grid(config) ** 2 * projection

  def head(h):
    body = width * h.hidden + h.hidden**2 + h.hidden * h.bottleneck
    return 2 * (body + h.bottleneck * h.prototypes)

  masks = dict(group_size=config.group_size, views=2, grid=_grid(config))
  hidden = masking.slots(**masks, **config.masking) / config.group_size
  return head(fields.dino), hidden * head(fields.get("ibot", fields.dino))


def _grid(config) -> int:
  return config.augment.global1.size // config.backbone.patch_size


def _teacher_flops(config, backbone, fields) -> float:
  """Of an image's two global crops, whole, and of the heads."""
  image, patches = _head_flops(config, backbone, fields)
  return 2 * (sum(_crop_flops(backbone, _grid(config) ** 2)) + image) + patches


def _student_flops(config) -> float:
  """Of all of an image's crops that the student sees, forward."""
  b, local = config.backbone, config.augment.local.size // config.backbone.patch_size
  image, patches = _head_flops(config, b, config.heads)
  kinds = [(2, _grid(config)), (config.augment.num_local, local)]
  if config.distill.teacher and config.distill.kind == "features":
    kinds = kinds[:1]
  total = patches
  for views, grid in kinds:
    embed, layers = _crop_flops(b, grid**2)
    crops = config.group_size * views
    total += views * (
      embed + image + layers * blocks.kept_crops(crops, b.drop_path) / crops
    )
  return total


def _gram_flops(config) -> float:
  """Of a Gram teacher's forward pass and matrix, and the student's matrix and back."""
  if not config.gram.teacher:
    return 0.0
  size, b = config.gram.crop_size or config.augment.global1.size, config.backbone
  products = _grid(config) ** 4 * b.width  # multiply-adds of a crop's Gram matrix
  seen = sum(_crop_flops(b, (size // b.patch_size) ** 2))
  return 2 * (seen + (1 + 3) * 2 * products)


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
