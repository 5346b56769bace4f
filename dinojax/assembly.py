"""Assembly of a run: from config and mesh to initial state and compiled train step.

A distillation is assembled of its students, and trains them in one step.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from dinojax import (
  dino,
  distill,
  optimizer,
  resolutions,
  schedules,
  sharding,
  start,
  students,
)
from dinojax.data import train_batches
from dinojax.networks import heads, vit


class Assembly(NamedTuple):
  """What a network's training is made of; call its functions under `jax.set_mesh`.

  student: its modules, optimiser, schedules and config.
  init_from_noise: jitted key -> TrainState, born sharded.
  init: the same with the weights that config.init and config.gram name.
  complete: a restored state -> the same with the Gram teacher that config.gram names,
    if the checkpoint is of a stage without one.
  train_step: jitted (state, batch, key) -> (state, scalars); donates its state.
  abstract_state, abstract_batches, abstract_key: shapes, dtypes and shardings of the
    arguments of `train_step`; a batch for each row of `resolutions.configs`.
  image_feature: jitted (teacher, images [B, S, S, C]) -> frozen features [B, D].
  patch_tokens: the same -> [B, N, D].
  """

  student: distill.Student
  init_from_noise: Callable
  init: Callable
  complete: Callable
  train_step: Callable
  abstract_state: Any
  abstract_batches: list[dict]
  abstract_key: Any
  image_feature: Callable
  patch_tokens: Callable

  def lower_step(self, row: int = 0) -> jax.stages.Lowered:
    """The traced `train_step` of a row, which needs neither a state nor a batch."""
    batch = self.abstract_batches[row]
    return self.train_step.lower(self.abstract_state, batch, self.abstract_key)

  @property
  def nets(self) -> dino.Nets | distill.FeatureNets:
    """The modules."""
    return self.student.nets

  @property
  def members(self) -> dict[str, "Assembly"]:
    """The networks that a run trains, by name: this one alone."""
    return {"": self}

  def join(self, states: dict[str, Any], teacher: Any) -> Any:
    """The state of `train_step` from that of each member, and a frozen teacher."""
    del teacher
    return states[""]

  def split(self, joined: Any) -> dict[str, Any]:
    """State or scalars of each member."""
    return {"": joined}


class Distillation(NamedTuple):
  """What a run of several students is made of: as `Assembly`, of `distill.State`.

  members: by name. train_step: of all students at once.
  """

  members: dict[str, Assembly]
  train_step: Callable
  abstract_state: distill.State
  abstract_batches: list[dict]
  abstract_key: Any

  lower_step = Assembly.lower_step

  def join(self, states: dict[str, Any], teacher: Any) -> distill.State:
    """The state of `train_step` from that of each student, and the frozen teacher."""
    return distill.State(teacher, states)

  def split(self, joined: Any) -> dict[str, Any]:
    """State or scalars of each student."""
    return joined.students if isinstance(joined, distill.State) else joined


def assemble_run(config, mesh: Mesh) -> Assembly | Distillation:
  """Assembles all that a run trains in one step."""
  if config.distill.teacher:
    return assemble_students(config, mesh)
  return assemble(config, mesh)


def assemble_students(config, mesh: Mesh) -> Distillation:
  """Assembles the students of a distillation, of a config that was checked."""
  members = {k: assemble(x, mesh) for k, x in students.configs(config).items()}
  step = functools.partial(
    distill.train_step,
    nets=teacher_nets(config),
    students={name: member.student for name, member in members.items()},
    cfg=config,
  )
  shapes = start.teacher_shapes(config)
  frozen = jax.tree.map(sharded, shapes, sharding.state_sharding(mesh, shapes))
  states = {name: member.abstract_state for name, member in members.items()}
  state = distill.State(frozen, states)
  first = next(iter(members.values()))
  return Distillation(
    members=members,
    train_step=_jit_step(step, config, mesh, state),
    abstract_state=state,
    abstract_batches=_abstract_batches(config, mesh),
    abstract_key=first.abstract_key,
  )


def assemble(config, mesh: Mesh) -> Assembly:
  """Builds networks, optimiser and jitted functions of a config that was checked."""
  nets = make_nets(config)
  plan = schedules.make_schedules(**config.schedules, total_steps=config.total_steps)
  tx = optimizer.adamw(
    learning_rate=plan.learning_rate,
    weight_decay=plan.weight_decay,
    depth=config.backbone.depth,
    **config.optimizer,
  )
  init = functools.partial(dino.init_state, nets=nets, tx=tx, cfg=config)
  if isinstance(nets, distill.FeatureNets):
    init = functools.partial(distill.init_features, nets=nets, tx=tx)
  step = functools.partial(
    dino.train_step, nets=nets, tx=tx, schedules=plan, cfg=config
  )

  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(init, key)
  by_state = sharding.state_sharding(mesh, state)
  jitted_init = jax.jit(init, out_shardings=by_state)

  def init_run(key):
    state = start.from_weights(jitted_init(key), config)
    return start.with_gram_teacher(state, config)

  def complete(state):
    return (
      start.with_gram_teacher(state, config) if state.gram_teacher is None else state
    )

  state = jax.tree.map(sharded, state, by_state)
  return Assembly(
    student=distill.Student(nets, tx, plan, config),
    init_from_noise=jitted_init,
    init=init_run,
    complete=complete,
    train_step=_jit_step(step, config, mesh, state),
    abstract_state=state,
    abstract_batches=_abstract_batches(config, mesh),
    abstract_key=sharded(key, sharding.replicated(mesh)),
    image_feature=jax.jit(functools.partial(image_feature, nets)),
    patch_tokens=jax.jit(functools.partial(patch_tokens, nets)),
  )


def _jit_step(step: Callable, config, mesh: Mesh, state: Any) -> Callable:
  """A jitted (state, batch, key) -> (state, scalars), for a state of these shapes."""
  by_state = jax.tree.map(lambda x: x.sharding, state)
  by_batch, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  platform = mesh.devices.flat[0].platform
  return jax.jit(
    step,
    in_shardings=(by_state, by_batch, replicated),
    out_shardings=(by_state, replicated),
    donate_argnums=0,
    # A platform that the config does not name takes XLA's own options.
    compiler_options=dict(config.compiler_options.get(platform, {})),
  )


def _abstract_batches(config, mesh: Mesh) -> list[dict]:
  where = sharding.batch_sharding(mesh)
  return [
    {
      name: jax.ShapeDtypeStruct(shape, kind, sharding=where)
      for name, (shape, kind) in train_batches.batch_shapes(row).items()
    }
    for row in resolutions.configs(config)
  ]


def sharded(x: jax.ShapeDtypeStruct, where: jax.sharding.Sharding):
  """The same shape and dtype, with a sharding."""
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def make_nets(config) -> dino.Nets | distill.FeatureNets:
  """The networks of a config: its groups `backbone` and `heads`.

  In a distillation by features, projections to its teacher's width in heads' place.
  """
  backbone = vit.VisionTransformer(**config.backbone, **_how(config))
  if config.distill.teacher and config.distill.kind == "features":
    width = config.distill.backbone.width
    projection = heads.Projection(width, dtype=config.backbone.dtype)
    return distill.FeatureNets(backbone, projection, projection)
  return _with_heads(backbone, config.heads)


def teacher_nets(config) -> Any:
  """The networks of a distillation's teacher; of features, its backbone alone."""
  group = config.distill
  backbone = vit.VisionTransformer(**group.backbone, **_how(config))
  if group.kind == "features":
    return distill.FeatureNets(backbone, None, None)
  return _with_heads(backbone, group.heads)


def _how(config) -> dict[str, Any]:
  return {name: config[name] for name in ("remat", "unroll", "attention")}


def _with_heads(backbone: vit.VisionTransformer, fields) -> dino.Nets:
  head = {k: heads.DINOHead(**v, dtype=backbone.dtype) for k, v in fields.items()}
  return dino.Nets(backbone, head["dino"], head.get("ibot", head["dino"]))


def image_feature(nets: dino.Nets, teacher: Any, images: jax.Array) -> jax.Array:
  """The teacher's frozen image feature [B, D] of images [B, S, S, C]."""
  return _features(nets, teacher, images).image


def patch_tokens(nets: dino.Nets, teacher: Any, images: jax.Array) -> jax.Array:
  """The teacher's frozen patch tokens [B, N, D] of images [B, S, S, C]."""
  return _features(nets, teacher, images).patches


def _features(nets, teacher, images) -> vit.Features:
  crops = [nets.backbone.normalize(images)]
  (seen,) = nets.backbone.apply({"params": teacher["backbone"]}, crops, [None])
  return seen
