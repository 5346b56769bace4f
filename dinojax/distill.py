"""Distillation: students learn from one frozen teacher, several in one step.

The teacher is no average of the student, but a larger network that has learnt. It sees
each batch once, whatever the number of students. Two kinds:

  prototypes  of a teacher with its heads: the method of dino.py with its targets. As in
              DINOv2 (arXiv:2304.07193, section 5) and DINOv3, students see whole crops:
              the iBOT loss is taken at the masked places, but nothing is hidden there.
  features    of a teacher without heads, as released ones are: its image feature and
              patch tokens of the global crops, which the student sees, too, through a
              learned projection of each. The loss is AM-RADIO's (arXiv:2312.06709), as
              it needs neither prototypes, nor a queue, nor statistics of the data, and
              learns patches as well as images: cosine distance, for patches nine parts
              of it to one part of smooth L1, which keeps their lengths.

Each student has its own optimiser, heads and EMA, which is what is evaluated. What it
learns does not depend on which others are trained beside it.

Dimension key: as of dino.py; T width of the teacher.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dinojax import accumulate, dino, losses

PATCH_COSINE, PATCH_L1 = 0.9, 0.1  # of the loss of patches


class FeatureNets(NamedTuple):
  """The modules of a student that learns features."""

  backbone: nn.Module
  image_projection: nn.Module
  patch_projection: nn.Module


class Student(NamedTuple):
  """What trains a student: as of `dino.train_step`."""

  nets: dino.Nets | FeatureNets
  tx: optax.GradientTransformation
  schedules: Any
  cfg: Any


@flax.struct.dataclass
class State:
  """State of a distillation: the frozen teacher's parameters, and each student's."""

  teacher: Any
  students: dict[str, dino.TrainState]


def init_features(key: jax.Array, *, nets: FeatureNets, tx) -> dino.TrainState:
  """The state of a student that learns features, before its first step."""
  image, feature = nets.backbone.example(), jnp.zeros((1, nets.backbone.width))
  examples = [((image,), (None,)), (feature,), (feature,)]
  student = {
    name: net.init(one, *example)["params"]
    for name, net, one, example in zip(
      nets._fields, nets, jax.random.split(key, 3), examples, strict=True
    )
  }
  ema = jax.tree.map(jnp.copy, student)
  return dino.TrainState(jnp.int32(0), student, ema, tx.init(student), {})


def resize(crops: jax.Array, side: int) -> jax.Array:
  """Crops [..., S, S, C] at `side` pixels, bicubic, against aliasing."""
  if crops.shape[-2] == side:
    return crops
  shape = (*crops.shape[:-3], side, side, crops.shape[-1])
  pixels = jax.image.resize(crops.astype(jnp.float32), shape, "cubic")
  if crops.dtype == jnp.float32:
    return pixels
  most = jnp.iinfo(crops.dtype).max
  return jnp.clip(jnp.round(pixels), 0, most).astype(crops.dtype)


def seen_by(net: nn.Module, batch: dict, patch_size: int) -> dict:
  """The batch as a network of a distillation sees it: unmasked, in its own pixels.

  Args:
    net: the backbone.
    batch: of crops in patches of `patch_size` pixels.
    patch_size: `config.backbone.patch_size`.
  """
  crops = {
    name: resize(x, x.shape[-2] // patch_size * net.patch_size)
    for name, x in batch.items()
    if name.endswith("_crops")
  }
  return {**batch, **crops, "mask": jnp.zeros_like(batch["mask"])}


def teacher_features(teacher: Any, batch: dict, *, nets: Any) -> dict:
  """{"image": [B*V, T], "patches": [B*V, N, T]} of the global crops."""
  crops = nets.backbone.normalize(dino.flatten(batch["global_crops"]))
  (seen,) = nets.backbone.apply({"params": teacher["backbone"]}, (crops,), (None,))
  return {"image": seen.image, "patches": seen.patches}


def feature_loss(student, targets, batch, groups, *, earlier, rates, key, nets, cfg):
  """The loss of features, and its parts by name; arguments as `dino.student_loss`."""
  del earlier, rates, cfg
  crops = nets.backbone.normalize(dino.flatten(batch["global_crops"]))
  rngs = {"drop_path": key, "rope": jax.random.fold_in(key, 1)}
  (seen,) = nets.backbone.apply(
    *({"params": student["backbone"]}, (crops,), (None,)),
    **dict(groups=groups, train=True, rngs=rngs),
  )
  image, patches = (
    net.apply({"params": student[name]}, feature)
    for name, net, feature in (
      ("image_projection", nets.image_projection, seen.image),
      ("patch_projection", nets.patch_projection, seen.patches),
    )
  )
  by_image = losses.cosine_distance(image, targets["image"]).mean()
  cosine = losses.cosine_distance(patches, targets["patches"]).mean()
  l1 = optax.losses.huber_loss(patches, targets["patches"], delta=1.0).mean()
  by_patch = PATCH_COSINE * cosine + PATCH_L1 * l1
  loss = by_image + by_patch
  return loss, dict(loss=loss, loss_image=by_image, loss_patches=by_patch)


def targets_of(teacher, batch: dict, temp, *, nets, cfg) -> tuple[dict, dict]:
  """The targets of a batch, for all students, and scalars about them by name."""
  see = functools.partial(seen_by, nets.backbone, patch_size=cfg.backbone.patch_size)
  function = teacher_features
  if cfg.distill.kind == "prototypes":
    function = dino.teacher_logits
  found = accumulate.collect(
    lambda micro: function(teacher, see(micro), nets=nets),
    batch,
    **dict(groups=len(batch["masked_indices"]), microbatches=cfg.accumulation),
  )
  if cfg.distill.kind == "features":
    return found, {}
  targets, _ = dino.teacher_targets(found, {}, temp)
  return targets, {"teacher_entropy": losses.entropy(targets["dino"])}


def loss_of(student: Student, cfg) -> Callable:
  """The loss of a student, which sees a batch in its own way; for `dino.update`."""
  kinds = {"prototypes": dino.student_loss, "features": feature_loss}

  def loss(params, targets, batch, groups, **more):
    seen = seen_by(student.nets.backbone, batch, cfg.backbone.patch_size)
    return kinds[cfg.distill.kind](params, targets, seen, groups, **more)

  return loss


def train_step(state: State, batch: dict, key, *, nets, students, cfg):
  """One update of each student: the state after, and scalars by name, of each by name.

  Args:
    state: the state before; may be donated.
    batch: as of `dino.train_step`.
    key: likewise.
    nets: modules of the teacher.
    students: {name: Student}.
    cfg: the config of the run, of which distill, backbone and accumulation are read.
  """
  trained, scalars = {}, {}
  first = next(iter(state.students))
  temp = students[first].schedules.teacher_temp(state.students[first].step)
  targets, about = targets_of(state.teacher, batch, temp, nets=nets, cfg=cfg)
  for name, student in students.items():
    before = state.students[name]
    trained[name], metrics = dino.update(
      *(before, targets, batch, key),
      loss=loss_of(student, cfg),
      rates=student.schedules.at(before.step),
      **dict(nets=student.nets, tx=student.tx, cfg=student.cfg),
    )
    scalars[name] = metrics | about
  return State(state.teacher, trained), scalars
