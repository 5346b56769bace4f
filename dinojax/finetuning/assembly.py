"""Assembly of a fine-tuning: from weights and mesh to its compiled functions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from dinojax import backbone, sharding
from dinojax.finetuning import tuning


class Assembly(NamedTuple):
  """What a fine-tuning is made of; call its functions under `jax.set_mesh`.

  init: weights to start from -> the first state, born sharded. step: (state, batch) ->
  (state, scalars); donates its state. lower_step: it, lowered for the shapes of a
  batch; the weights to start from may be shapes, too. to_saved: state -> what a
  checkpoint holds. of_saved: the inverse. abstract_state, abstract_saved: shapes,
  dtypes and shardings of a state, and of what a checkpoint holds. logits: (state,
  images [B, S, S, C]) -> scores [B, C], or [B, N, C] of patches.
  """

  init: Callable[[Any], tuning.State]
  step: Callable[[tuning.State, dict], tuple[tuning.State, dict]]
  lower_step: Callable[[dict], jax.stages.Lowered]
  to_saved: Callable[[tuning.State], dict[str, Any]]
  of_saved: Callable[[dict[str, Any]], tuning.State]
  abstract_state: tuning.State
  abstract_saved: dict[str, Any]
  logits: Callable[[tuning.State, jax.Array], jax.Array]


def assemble(
  recipe: tuning.Recipe,
  loaded: backbone.Backbone,
  mesh: Mesh,
  *,
  classes: int,
  remat: str,
) -> Assembly:
  """Builds optimiser and jitted functions; compiles nothing yet.

  Args:
    recipe: of the run.
    loaded: the weights to start from, on `mesh`.
    mesh: of all processes.
    classes: C.
    remat: activation checkpointing, a key of `blocks.REMAT`.
  """
  module = loaded.module.clone(remat=remat)
  network = tuning.Network(module, recipe.task, recipe.columns)
  tx = tuning.make_optimizer(recipe, depth=module.depth)
  init = functools.partial(
    tuning.init_state, recipe, tx=tx, module=module, classes=classes
  )
  state = jax.eval_shape(init, loaded.params)
  by_state = sharding.state_sharding(mesh, state)
  abstract_state = _placed(state, by_state)
  frozen = None if recipe.whole else loaded.params

  to_saved = functools.partial(tuning.to_saved, recipe)
  saved = jax.eval_shape(to_saved, state, frozen)
  by_saved = sharding.state_sharding(mesh, saved)
  jitted_init = jax.jit(init, out_shardings=by_state)
  jitted_to_saved = jax.jit(to_saved, out_shardings=by_saved)
  step = jax.jit(
    functools.partial(tuning.train_step, network=network, tx=tx, recipe=recipe),
    out_shardings=(by_state, sharding.replicated(mesh)),
    donate_argnums=0,
  )

  @jax.jit
  def logits(used, head, frozen, images):
    params = tuning.weights(recipe, used, frozen)
    return network.scores(params, head, images)

  return Assembly(
    init=jitted_init,
    step=lambda state, batch: step(state, frozen, batch),
    lower_step=lambda batch: step.lower(abstract_state, frozen, batch),
    to_saved=lambda state: jitted_to_saved(state, frozen),
    of_saved=functools.partial(tuning.of_saved, recipe),
    abstract_state=abstract_state,
    abstract_saved=_placed(saved, by_saved),
    logits=lambda state, images: logits(state.used, state.head, frozen, images),
  )


def _placed(shapes: Any, shardings: Any) -> Any:
  """Shapes with their shardings."""
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    *(shapes, shardings),
  )
