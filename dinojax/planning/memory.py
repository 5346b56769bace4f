"""Memory of a device: of a compiled program, and of all that a run compiles."""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dinojax import assembly, sharding
from dinojax.data import layouts, train_batches
from dinojax.evals import features, patches, segmentation, votes
from dinojax.planning import topology

IMAGENET = dict(train=1_281_167, test=50_000, classes=1_000)  # images of ImageNet-1k
ADE20K = dict(train=20_210, classes=150)


def peak(compiled: jax.stages.Compiled) -> int:
  """Bytes that a program needs at most, arguments and results included."""
  found = compiled.memory_analysis()
  return (
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
    + found.temp_size_in_bytes
    + found.generated_code_size_in_bytes
  )


def on_device(tree: Any) -> int:
  """Bytes that each device holds of a tree of sharded shapes."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def teacher_logits(config) -> int:
  """Bytes of the teacher's float32 logits of a whole batch, over all devices.

  Targets need all of them at once, so accumulation does not divide them.
  """
  if config.distill.teacher and config.distill.kind == "features":
    return 0
  heads = config.distill.heads if config.distill.teacher else config.heads
  shapes = train_batches.batch_shapes(config)
  crops = math.prod(shapes["global_crops"][0][:2])
  masked = math.prod(shapes["masked_indices"][0])
  patch_prototypes = heads.get("ibot", heads.dino).prototypes
  return 4 * (crops * heads.dino.prototypes + masked * patch_prototypes)


def exhausted(message: str) -> tuple[float, float] | None:
  """Bytes needed and bytes there are, from XLA's message that memory does not suffice.

  They stand first in it: "Used 17.02G of 15.75G hbm", or "HLO temporaries (122.59G)
  exceeds available HBM (15.75G)". None for any other message.
  """
  sizes = re.findall(r"([\d.]+)([KMG])\b", message)
  if "RESOURCE_EXHAUSTED" not in message or len(sizes) < 2:
    return None
  unit = {"K": 2**10, "M": 2**20, "G": 2**30}
  return tuple(float(number) * unit[letter] for number, letter in sizes[:2])


def beside_the_step(
  config, run: assembly.Assembly | assembly.Distillation, mesh: Mesh
) -> dict[str, float]:
  """Peak bytes of a device in what a run compiles besides its step, by name.

  These are its start, and of the k-NN evaluation, if it is on, the teacher's features
  and the neighbours, at ImageNet-1k's size, and of `dense_eval`, if it is on, those of
  patches at ADE20K's. What a run holds meanwhile is counted. In a distillation, those
  of each student.

  Args:
    config: of the run.
    run: of the config.
    mesh: of the run; call this under `jax.set_mesh(mesh)`.
  """
  found, held = {}, on_device(run.abstract_state)
  for name, one in run.members.items():
    label = f"{name}: " if name else ""
    others = held - on_device(one.abstract_state)
    start = _compiled_peak(one.init_from_noise.lower(one.abstract_key), mesh)
    found[f"{label}start"] = start + others
    if config.knn.every:
      evaluation = _evaluation(one.student.cfg, one, mesh, held)
      found |= {f"{label}{what}": size for what, size in evaluation.items()}
    if config.dense_eval.every:
      segmented = _segmentation(one.student.cfg, mesh)
      found[f"{label}dense_eval, neighbours"] = held + segmented
  return found


def _evaluation(config, run, mesh, held) -> dict[str, float]:
  """Peak bytes of the k-NN evaluation of a network, while a run holds its state."""
  bank, queries = (_bank(config, mesh, IMAGENET[x]) for x in ("train", "test"))
  batch, crop = config.knn.batch_size, config.knn.crop
  channels, dtype = layouts.of(config.backbone)
  images = _shape(mesh, (batch, crop, crop, channels), dtype, sharding.BATCH)
  teacher = run.abstract_state.teacher
  extract = run.image_feature.lower(teacher, images)
  # Features stay on the devices batch by batch, and are stacked in the end.
  beside = held - on_device(teacher) + on_device(bank)
  names = ("ks", "temperature")
  neighbours = votes.lower(
    bank,
    queries,
    num_classes=IMAGENET["classes"],
    mesh=mesh,
    **{name: config.knn[name] for name in names},
  )
  searched = _compiled_peak(neighbours, mesh)
  return {
    "k-NN, features": _compiled_peak(extract, mesh) + beside,
    "k-NN, neighbours": held + max(searched, 2 * on_device((bank, queries))),
  }


def _segmentation(config, mesh) -> float:
  """Peak bytes of `config.dense_eval`, whose memory of patches is first stacked."""
  group, classes = config.dense_eval, ADE20K["classes"]
  grid, width = (group.crop // config.backbone.patch_size) ** 2, config.backbone.width
  most = segmentation.most_images(grid, k=group.k, num_classes=classes)
  batch = max(min(group.batch_size, most) // mesh.size, 1) * mesh.size
  kept = min(grid, max(1, group.memory // ADE20K["train"]))
  split = PartitionSpec(None, sharding.AXES)
  rows = -(-ADE20K["train"] // batch), batch * kept
  bank = features.Bank(
    features=_shape(mesh, (*rows, width), np.float32, split),
    labels=_shape(mesh, rows, np.int32, split),
  )
  memory = patches.Memory(bank, _shape(mesh, (*rows, classes), np.float32, split), kept)
  tokens = _shape(mesh, (batch, grid, width), np.float32, sharding.BATCH)
  maps = _shape(mesh, (batch, group.crop, group.crop), np.uint8, sharding.BATCH)
  votes_of = segmentation.Votes(group.k, group.temperature, mesh)
  counted = segmentation.count.lower(memory, tokens, maps, predict=votes_of, mesh=mesh)
  return max(_compiled_peak(counted, mesh), 2 * on_device(memory))


def _bank(config, mesh, images):
  """Shapes of the features of so many images."""
  batch = config.knn.batch_size
  steps, split = -(-images // batch), PartitionSpec(None, sharding.AXES)
  shape = (steps, batch, config.backbone.width)
  return features.Bank(
    features=_shape(mesh, shape, np.float32, split),
    labels=_shape(mesh, shape[:2], np.int32, split),
  )


def _shape(mesh, shape, dtype, spec):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def _compiled_peak(lowered, mesh):
  try:
    return peak(topology.compile_for(mesh.devices.flatten().tolist(), lowered))
  except jax.errors.JaxRuntimeError as error:
    if (found := exhausted(str(error))) is None:
      raise
    return found[0]
