"""Start of a run from other weights: a backbone, a whole teacher, a frozen one."""

from typing import Any

import jax
from jax.sharding import Mesh

from dinojax import dino, errors
from dinojax.weights import formats, image_fields, model, wrappers


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


def teacher_shapes(config) -> dict[str, Any]:
  """Parameters of a distillation's teacher, as a tree of `jax.ShapeDtypeStruct`."""
  group = config.distill
  fields = {name: group.backbone[name] for name in model.ARCHITECTURE}
  shapes = {"backbone": model.shapes(fields)}
  if group.kind == "prototypes":
    width = group.backbone.width
    for name, head in group.heads.items():
      shapes[f"{name}_head"] = model.head_shapes(width=width, **head)
  return shapes


def read_teacher(config, mesh: Mesh) -> dict[str, Any] | None:
  """The parameters of a distillation's teacher, sharded; None in any other run.

  Raises:
    UserError: they cannot be read, or are of another network than `config.distill`
      says.
  """
  path, wanted = config.distill.teacher, config.distill.backbone
  if not path:
    return None
  shapes = teacher_shapes(config)
  try:
    weights = formats.read_at(path, heads=wanted.heads, mesh=mesh, parts=tuple(shapes))
    if lacking := shapes.keys() - weights.params.keys():
      raise errors.UserError(
        f"{path} has no {' and no '.join(sorted(lacking))}, as released weights have"
        " none; set config.distill.kind=features, which needs none"
      )
    if (grid := weights.backbone["pos_grid"]) != wanted.pos_grid:
      raise errors.UserError(
        f"{path} has pos_grid={grid}; set config.distill.backbone.pos_grid={grid}"
      )
    backbone = model.fit(weights, wanted, path, group="config.distill.backbone")
    params = {**weights.params, "backbone": backbone}
    for name in shapes.keys() - {"backbone"}:
      wanted_head, found = (
        {k: tuple(x.shape) for k, x in model.flatten(tree[name]).items()}
        for tree in (shapes, params)
      )
      model.compare(f"{path}: {name}", wanted=wanted_head, found=found)
  except errors.UserError as error:
    raise errors.UserError(f"config.distill.teacher: {error}") from error
  return params


def _read(path, field, parts, config) -> dict[str, Any]:
  """Parts of the weights at "PATH" or "RUN@STEP", the backbone fit to the config."""
  try:
    weights = formats.read_at(path, heads=config.backbone.heads, parts=parts)
    if field == "config.init.backbone":
      weights = image_fields.adapted(weights, config.backbone, rgb=config.init.rgb)
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
