"""Start of a run from other weights: a backbone, a whole teacher, a Gram teacher."""

from typing import Any

import jax

from dinojax import dino, errors
from dinojax.weights import formats, model, wrappers


def from_weights(state: dino.TrainState, config) -> dino.TrainState:
  """The state with the weights that config.init names, in student and teacher alike.

  Raises:
    UserError: they cannot be read, or are of another network than the config's.
  """
  for name, parts in (
    ("backbone", ("backbone",)),
    ("run", ("backbone", *wrappers.HEADS)),
  ):
    if path := config.init[name]:
      params = _read(path, f"config.init.{name}", parts, config)
      return state.replace(
        student=_replace(state.student, params, path),
        teacher=_replace(state.teacher, params, path),
      )
  return state


def with_gram_teacher(state: dino.TrainState, config) -> dino.TrainState:
  """The state with the Gram teacher that config.gram names; as it is without one.

  Raises:
    UserError: it cannot be read, or is another network than `config.backbone`.
  """
  path = config.gram.teacher
  if not path:
    return state
  params = _read(path, "config.gram.teacher", ("backbone",), config)
  like = state.teacher["backbone"]
  return state.replace(gram_teacher=_placed(params["backbone"], like))


def _read(path, field, parts, config) -> dict[str, Any]:
  """Parts of the weights at "PATH" or "RUN@STEP", the backbone fit to the config."""
  try:
    weights = formats.read_at(path, heads=config.backbone.heads, parts=parts)
    backbone = model.fit(weights, config.backbone, path)
  except errors.UserError as error:
    raise errors.UserError(f"{field}: {error}") from error
  return {**weights.params, "backbone": backbone}


def _replace(tree: dict, params: dict, path: str) -> dict:
  """A network's parameters with those at `path` in the place of their own."""
  heads = {name: x for name, x in params.items() if name != "backbone"}
  if heads:
    wanted, found = (
      {name: tuple(x.shape) for name, x in model.flatten(part).items()}
      for part in ({k: x for k, x in tree.items() if k != "backbone"}, heads)
    )
    try:
      model.compare(path, wanted=wanted, found=found)
    except errors.UserError as error:
      raise errors.UserError(f"config.init.run: {error}; see config.heads") from error
  return {**tree, **{name: _placed(x, tree[name]) for name, x in params.items()}}


def _placed(params: Any, like: Any) -> Any:
  """Parameters as global arrays, sharded as `like`."""
  return jax.tree.map(lambda x, other: formats.place(x, other.sharding), params, like)
