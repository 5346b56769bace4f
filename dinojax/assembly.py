"""Assembly of a run: from config and mesh to initial state and compiled train step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from dinojax import dino, optimizer, resolutions, schedules, sharding, start
from dinojax.data import train_batches
from dinojax.networks import heads, vit


class Assembly(NamedTuple):
  """What a run is made of; call its functions under `jax.set_mesh`.

  nets: the modules.
  init_from_noise: jitted key -> TrainState, born sharded.
  init: the same with the weights that config.init and config.gram name.
  complete: a restored state -> the same with the Gram teacher that config.gram names,
    if the checkpoint is of a stage without one.
  train_step: jitted (state, batch, key) -> (state, scalars); donates its state.
  abstract_state, abstract_batches, abstract_key: shapes, dtypes and shardings of the
    arguments of `train_step`; a batch for each row of `resolutions.configs`.
  image_feature: jitted (teacher, uint8 [B, S, S, 3]) -> frozen features [B, D].
  """

  nets: dino.Nets
  init_from_noise: Callable
  init: Callable
  complete: Callable
  train_step: Callable
  abstract_state: Any
  abstract_batches: list[dict]
  abstract_key: Any
  image_feature: Callable

  def lower_step(self, row: int = 0) -> jax.stages.Lowered:
    """The traced `train_step` of a row, which needs neither a state nor a batch."""
    batch = self.abstract_batches[row]
    return self.train_step.lower(self.abstract_state, batch, self.abstract_key)


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
  step = functools.partial(
    dino.train_step, nets=nets, tx=tx, schedules=plan, cfg=config
  )

  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(init, key)
  by_state = sharding.state_sharding(mesh, state)
  by_batch, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  jitted_init = jax.jit(init, out_shardings=by_state)

  def init_run(key):
    state = start.from_weights(jitted_init(key), config)
    return start.with_gram_teacher(state, config)

  def complete(state):
    return (
      start.with_gram_teacher(state, config) if state.gram_teacher is None else state
    )

  platform = mesh.devices.flat[0].platform
  return Assembly(
    nets=nets,
    init_from_noise=jitted_init,
    init=init_run,
    complete=complete,
    train_step=jax.jit(
      step,
      in_shardings=(by_state, by_batch, replicated),
      out_shardings=(by_state, replicated),
      donate_argnums=0,
      # A platform that the config does not name takes XLA's own options.
      compiler_options=dict(config.compiler_options.get(platform, {})),
    ),
    abstract_state=jax.tree.map(sharded, state, by_state),
    abstract_batches=[
      {
        name: jax.ShapeDtypeStruct(shape, kind, sharding=by_batch)
        for name, (shape, kind) in train_batches.batch_shapes(row).items()
      }
      for row in resolutions.configs(config)
    ],
    abstract_key=sharded(key, replicated),
    image_feature=jax.jit(functools.partial(image_feature, nets)),
  )


def sharded(x: jax.ShapeDtypeStruct, where: jax.sharding.Sharding):
  """The same shape and dtype, with a sharding."""
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def make_nets(config) -> dino.Nets:
  """The networks of a config: its groups `backbone` and `heads`."""
  how = {name: config[name] for name in ("remat", "unroll", "attention")}
  backbone = vit.VisionTransformer(**config.backbone, **how)
  dtype = config.backbone.dtype
  head = {k: heads.DINOHead(**v, dtype=dtype) for k, v in config.heads.items()}
  return dino.Nets(backbone, head["dino"], head.get("ibot", head["dino"]))


def image_feature(nets: dino.Nets, teacher: Any, images: jax.Array) -> jax.Array:
  """The teacher's frozen image feature [B, D] of uint8 images [B, S, S, 3]."""
  crops = [nets.backbone.normalize(images)]
  (seen,) = nets.backbone.apply({"params": teacher["backbone"]}, crops, [None])
  return seen.image
