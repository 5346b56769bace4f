"""The method: DINOv2 (arXiv:2304.07193) and DINOv3, as functions of state and batch.

A student sees masked global crops and local crops. A teacher, the exponential moving
average (EMA) of the student, sees the global crops unmasked. Losses of the student:

  DINO   a crop predicts the prototypes that the teacher assigns to the other views;
  iBOT   a masked patch predicts the prototypes that the teacher assigns to it;
  KoLeo  image features spread out;
  Gram   patches stay as alike as an earlier teacher sees them: gram.py, a late stage.

Dimension key: B images of the global batch, V global crops of an image (2), L local
ones, N patches of a global crop, D width, K prototypes, G groups, U masked patches of a
group. A group is `cfg.group_size` neighbouring images of the batch, on one device.
DIFFERS: KoLeo, masks and drop path work within groups; the reference's work within a
GPU. So no loss depends on the machine, or on gradient accumulation.
"""

from typing import Any, NamedTuple

import chex
import einops
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dinojax import accumulate, gram, losses


class Nets(NamedTuple):
  """The modules; student and teacher are two parameter trees of the same networks."""

  backbone: nn.Module
  dino_head: nn.Module
  ibot_head: nn.Module  # the very same object where both losses share one head


@flax.struct.dataclass
class TrainState:
  """State of training.

  step: [] int32, completed updates. student, teacher: {"backbone", "dino_head"} trees,
  and "ibot_head" where it is separate. opt_state: the optimiser's, for the student.
  centers: mean teacher logits {"dino": [K], "ibot": [K]}; empty under Sinkhorn.
  gram_teacher: an earlier EMA backbone (gram.py) that start.py reads; None: no stage.
  """

  step: jax.Array
  student: Any
  teacher: Any
  opt_state: optax.OptState
  centers: dict[str, jax.Array]
  gram_teacher: Any = None


def init_state(key: jax.Array, *, nets: Nets, tx, cfg) -> TrainState:
  """The state before the first step: the teacher starts as a copy of the student."""
  keys = jax.random.split(key, 3)
  image, feature = nets.backbone.example(), jnp.zeros((1, nets.backbone.width))
  student = {
    "backbone": nets.backbone.init(keys[0], (image,), (None,))["params"],
    "dino_head": nets.dino_head.init(keys[1], feature)["params"],
  }
  if nets.ibot_head is not nets.dino_head:
    student["ibot_head"] = nets.ibot_head.init(keys[2], feature)["params"]
  prototypes = dict(dino=nets.dino_head.prototypes, ibot=nets.ibot_head.prototypes)
  centering = cfg.losses.targets == "centering"
  centers = {name: jnp.zeros(k) for name, k in prototypes.items() if centering}
  teacher = jax.tree.map(jnp.copy, student)
  earlier = jax.tree.map(jnp.copy, student["backbone"]) if cfg.gram.teacher else None
  return TrainState(jnp.int32(0), student, teacher, tx.init(student), centers, earlier)


def flatten(crops: jax.Array) -> jax.Array:
  """[B, V, ...] -> [B*V, ...]; an image's crops stay together, hence on its device."""
  return einops.rearrange(crops, "b v ... -> (b v) ...")


def masked_patches(patches: jax.Array, batch: dict) -> jax.Array:
  """Patch tokens [B*V, N, D] at batch["masked_indices"], as [G, U, D]."""
  indices = batch["masked_indices"]
  grouped = einops.rearrange(patches, "(g c) n d -> g (c n) d", g=len(indices))
  return jax.vmap(lambda tokens, i: tokens[i])(grouped, indices)


def teacher_logits(teacher, batch: dict, *, nets: Nets) -> dict:
  """Prototype scores {"dino": [B, V, K], "ibot": [G, U, K]} of unmasked crops."""
  crops = nets.backbone.normalize(flatten(batch["global_crops"]))
  (seen,) = nets.backbone.apply({"params": teacher["backbone"]}, (crops,), (None,))
  images = einops.rearrange(seen.image, "(b v) d -> b v d", b=len(batch["mask"]))
  patches = masked_patches(seen.patches, batch)
  head = teacher.get("ibot_head", teacher["dino_head"])  # which both losses may share
  return {
    "dino": nets.dino_head.apply({"params": teacher["dino_head"]}, images),
    "ibot": nets.ibot_head.apply({"params": head}, patches),
  }


def teacher_targets(logits: dict, centers: dict, temp):
  """Targets of `teacher_logits`, float32 rows that sum to one, and the next centers."""
  assigned = {k: losses.assign(z, centers.get(k), temp=temp) for k, z in logits.items()}
  targets = {name: target for name, (target, _) in assigned.items()}
  return targets, {name: assigned[name][1] for name in centers}


def student_loss(student, targets, batch, groups, *, earlier, rates, key, nets, cfg):
  """The weighted sum of the losses, and each by name.

  earlier: the Gram teacher, or None. groups: [G] int32, ids. rates: schedules' values.
  """
  (b, views), num_local = batch["mask"].shape[:2], batch["local_crops"].shape[1]
  kinds = ("global_crops", "local_crops")
  crops = [nets.backbone.normalize(flatten(batch[kind])) for kind in kinds]
  rngs = {"drop_path": key, "rope": jax.random.fold_in(key, 1)}
  masks = (flatten(batch["mask"]), None)
  global_features, local_features = nets.backbone.apply(
    {"params": student["backbone"]}, crops, masks, groups=groups, train=True, rngs=rngs
  )
  global_images = einops.rearrange(global_features.image, "(b v) d -> b v d", b=b)
  local_images = einops.rearrange(local_features.image, "(b l) d -> b l d", b=b)
  images = jnp.concatenate([global_images, local_images], axis=1)  # [B, V + L, D]
  logits = nets.dino_head.apply({"params": student["dino_head"]}, images)
  temp = cfg.losses.student_temp

  # DINO: a global crop against the other global view, a local crop against both.
  chex.assert_axis_dimension(targets["dino"], 1, 2)
  other, both = targets["dino"][:, ::-1], targets["dino"].sum(1, keepdims=True)
  global_ce = losses.cross_entropy(logits[:, :views], other, temp=temp)  # [B, V]
  local_ce = losses.cross_entropy(logits[:, views:], both, temp=temp)  # [B, L]
  pairs = b * views * (views - 1 + num_local)
  dino = (global_ce.sum() + rates["local_weight"] * local_ce.sum()) / pairs

  # iBOT: mean over the masked patches of a crop, then over all crops, masked or not.
  patches = masked_patches(global_features.patches, batch)
  head = student.get("ibot_head", student["dino_head"])
  logits = nets.ibot_head.apply({"params": head}, patches)  # [G, U, K]
  patch_ce = losses.cross_entropy(logits, targets["ibot"], temp=temp)  # [G, U]
  ibot = (batch["masked_weights"] * patch_ce).sum() / (b * views)

  # KoLeo: each view by itself; neighbours within a group.
  by_view = einops.rearrange(global_images, "(g i) v d -> v g i d", i=cfg.group_size)
  koleo = sum(losses.koleo(view) for view in by_view)

  loss = cfg.losses.dino_weight * dino + cfg.losses.ibot_weight * ibot
  loss += cfg.losses.koleo_weight * koleo
  parts = dict(loss_dino=dino, loss_ibot=ibot, loss_koleo=koleo)
  if earlier is not None:  # also while its weight is 0
    wanted = gram.teacher_patches(earlier, batch, backbone=nets.backbone)
    parts["loss_gram"] = gram.loss(global_features.patches, wanted)
    loss += rates["gram_weight"] * parts["loss_gram"]
  return loss, dict(loss=loss, **parts)


def train_step(state: TrainState, batch: dict, key, *, nets, tx, schedules, cfg):
  """One update of student and teacher: the state after, and scalars by name.

  Args:
    state: the state before; may be donated.
    batch: global_crops [B,V,S,S,C] and local_crops [B,L,s,s,C], bool mask
      [B,V,N], int32 masked_indices [G,U] into a group's (image, view, patch) rows, and
      float32 masked_weights [G,U], one over the number of masked patches of the crop;
      perhaps gram_crops, the global crops as the Gram teacher sees them.
    key: the run's key; draws depend on it and on the step alone.
    nets: of `assembly.make_nets`.
    tx: an optax transformation of the student.
    schedules: of `schedules.make_schedules`.
    cfg: the config, of which group_size, losses, gram and accumulation are read.
  """
  split = dict(groups=len(batch["masked_indices"]), microbatches=cfg.accumulation)
  logits = accumulate.collect(
    lambda micro: teacher_logits(state.teacher, micro, nets=nets), batch, **split
  )
  rates = schedules.at(state.step)
  targets, centers = teacher_targets(logits, state.centers, rates["teacher_temp"])
  more = dict(loss=student_loss, rates=rates, nets=nets, tx=tx, cfg=cfg)
  state, metrics = update(state.replace(centers=centers), targets, batch, key, **more)
  return state, metrics | {"teacher_entropy": losses.entropy(targets["dino"])}


def update(state, targets, batch, key, *, loss, rates, nets, tx, cfg):
  """One update of the student, by a loss towards targets, and of its EMA."""
  groups = jnp.arange(len(batch["masked_indices"]))
  key = jax.random.fold_in(key, state.step)
  more = dict(earlier=state.gram_teacher, rates=rates, key=key, nets=nets, cfg=cfg)
  grads, metrics = accumulate.mean(
    lambda *part: jax.grad(loss, has_aux=True)(state.student, *part, **more),
    *(targets, batch, groups),
    **dict(groups=len(groups), microbatches=cfg.accumulation),
  )
  updates, opt_state = tx.update(grads, state.opt_state, state.student)
  student = optax.apply_updates(state.student, updates)
  share = 1 - rates["teacher_momentum"]
  teacher = optax.incremental_update(student, state.teacher, share)
  metrics |= {f"grad_norm_{name}": optax.tree.norm(g) for name, g in grads.items()}
  when = dict(step=state.step + 1, steps=cfg.gram.refresh_steps)
  earlier = gram.refresh(state.gram_teacher, teacher["backbone"], **when)
  new = (state.step + 1, student, teacher, opt_state, state.centers, earlier)
  return TrainState(*new), metrics | rates
