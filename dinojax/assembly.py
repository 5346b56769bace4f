"""From config and mesh to the compiled pieces of a run: initial state, train step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from dinojax import dino, errors, optimizer, schedules, sharding
from dinojax.data import train_batches
from dinojax.networks import heads, vit
from dinojax.weights import formats, model


class Assembly(NamedTuple):
  """What a run is made of.

  nets: the modules. init: key -> TrainState, born sharded. train_step: (state, batch,
  key) -> (state, scalars), donating its state. abstract_state: the shapes, dtypes and
  shardings of a TrainState.
  """

  nets: dino.Nets
  init: Callable
  train_step: Callable
  abstract_state: Any


def assemble(config, mesh: Mesh) -> Assembly:
  """Builds networks, optimiser and jitted functions; call them under `set_mesh`."""
  nets = make_nets(config)
  plan = schedules.make_schedules(**config.schedules, total_steps=config.total_steps)
  tx = optimizer.adamw(
    learning_rate=plan.learning_rate,
    weight_decay=plan.weight_decay,
    depth=config.backbone.depth,
    **config.optimizer,
  )
  init = functools.partial(dino.init_state, nets=nets, tx=tx, cfg=config)
  train_step = functools.partial(
    dino.train_step, nets=nets, tx=tx, schedules=plan, cfg=config
  )
  shapes = jax.eval_shape(init, jax.random.key(0))
  state_sharding = sharding.state_sharding(mesh, shapes)
  replicated = sharding.replicated(mesh)
  platform = mesh.devices.flat[0].platform
  return Assembly(
    nets=nets,
    init=jax.jit(init, out_shardings=state_sharding),
    train_step=jax.jit(
      train_step,
      in_shardings=(state_sharding, sharding.batch_sharding(mesh), replicated),
      out_shardings=(state_sharding, replicated),
      donate_argnums=0,
      compiler_options=config.compiler_options[platform].to_dict(),
    ),
    abstract_state=jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      shapes,
      state_sharding,
    ),
  )


def make_nets(config) -> dino.Nets:
  """The networks of a config: its groups `backbone` and `heads`."""
  how = {name: config[name] for name in ("remat", "unroll", "attention")}
  backbone = vit.VisionTransformer(**config.backbone, **how)
  dtype = config.backbone.dtype
  head = {k: heads.DINOHead(**v, dtype=dtype) for k, v in config.heads.items()}
  return dino.Nets(backbone, head["dino"], head.get("ibot", head["dino"]))


def compile_step(run: Assembly, config, mesh: Mesh) -> jax.stages.Compiled:
  """The compiled `run.train_step`, without a state or a batch."""
  batch = {
    name: jax.ShapeDtypeStruct(shape, kind, sharding=sharding.batch_sharding(mesh))
    for name, (shape, kind) in train_batches.batch_shapes(config).items()
  }
  key = jax.eval_shape(lambda: jax.random.key(0))
  key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(mesh))
  with jax.set_mesh(mesh):
    return run.train_step.lower(run.abstract_state, batch, key).compile()


def start_from(path: str, state: dino.TrainState, config) -> dino.TrainState:
  """The state with the backbone of student and teacher from a file of weights.

  Raises:
    UserError: it cannot be read, or is another network than `config.backbone`.
  """
  try:
    weights = formats.read(path, heads=config.backbone.heads)
    backbone = model.fit(weights, config.backbone, path)
  except errors.UserError as error:
    raise errors.UserError(f"config.init.backbone: {error}") from error

  def begin(tree):
    where = jax.tree.map(lambda x: x.sharding, tree["backbone"])
    return {**tree, "backbone": jax.tree.map(formats.place, backbone, where)}

  return state.replace(student=begin(state.student), teacher=begin(state.teacher))


def image_feature(nets: dino.Nets, teacher: Any, images: jax.Array) -> jax.Array:
  """The teacher's frozen image feature [B, D] of uint8 images [B, S, S, 3]."""
  crops = [vit.normalize(images)]
  (seen,) = nets.backbone.apply({"params": teacher["backbone"]}, crops, [None])
  return seen.image


def pixel_feature(_: None, images: jax.Array) -> jax.Array:
  """The feature that needs no network: [B, S, S, 3] uint8 -> [B, S*S*3]."""
  return vit.normalize(images).reshape(len(images), -1)
