"""Our own checkpoints: the teacher of a run read by parts, and weights written alone.

A run's checkpoint holds student, teacher and optimiser, eight times the backbone. Only
the parts asked for are read, from disk as in memory.
"""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from dinojax import checkpoint, errors, sharding
from dinojax.runtime import orbax_errors
from dinojax.weights import model

# What missing, short and changed files were seen to raise: Orbax's JSON lacks a key.
DAMAGE = (*orbax_errors.IO_ERRORS, KeyError)


def find(path: pathlib.Path, step: int | None) -> pathlib.Path:
  """The folder of one checkpoint: `path` itself, or a step of the run at `path`.

  Args:
    path: a run's workdir, or the folder of a checkpoint.
    step: completed updates; None: the newest.

  Raises:
    UserError: there is none.
  """
  path = path.resolve()  # as Orbax wants it
  if is_checkpoint(path):
    return path
  folder = path / "checkpoints"
  steps = sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []
  if not steps:
    raise errors.UserError(f"{path} holds no checkpoint yet; give a run that has one")
  if step is not None and step not in steps:
    raise errors.UserError(f"{path} has no checkpoint of step {step}, only {steps}")
  return folder / str(steps[-1] if step is None else step)


def locate(path: pathlib.Path, step: int | None) -> tuple[str, int] | None:
  """(workdir, step) of the checkpoint that `find` finds; None if it is of no run."""
  if not path.is_dir() or not (is_checkpoint(path) or (path / "checkpoints").is_dir()):
    return None
  folder = find(path, step)
  if folder.parent.name != "checkpoints":
    return None
  return str(folder.parent.parent), int(folder.name)


def is_checkpoint(path: pathlib.Path) -> bool:
  """Whether a folder is a single checkpoint of ours."""
  return (path / "state").is_dir() and (path / "record").is_dir()


def read_record(folder: pathlib.Path) -> dict:
  """The record of a checkpoint: step, config, checksums."""
  try:
    return ocp.JsonCheckpointHandler().restore(folder / "record")
  except DAMAGE as error:
    raise errors.UserError(f"{folder}: its record cannot be read: {error}") from error


def read(
  folder: pathlib.Path, *, mesh: Mesh | None = None, parts: tuple[str, ...]
) -> model.Weights:
  """The teacher of a checkpoint.

  Args:
    folder: of `find`.
    mesh: born sharded over it; None: NumPy arrays.
    parts: "backbone", and "dino_head", "ibot_head" where the checkpoint has them.

  Raises:
    UserError: it cannot be read, or is not what was saved.
  """
  record = read_record(folder)
  orbax_errors.mute_orbax()
  try:
    fields, checksums = record["config"]["backbone"], record["checksums"]
    backbone = {name: fields[name] for name in model.ARCHITECTURE}
    sizes = image_sizes(record["config"])
    handler = ocp.PyTreeCheckpointHandler()
    saved = handler.metadata(folder / "state").tree["teacher"]
    teacher = {name: saved[name] for name in parts if name in saved}
    abstract = {"teacher": _place(teacher, mesh)}
    restored = handler.restore(
      folder / "state",
      args=ocp.args.PyTreeRestore(
        item=abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
      ),
    )
  except DAMAGE as error:
    raise errors.UserError(
      f"{folder} cannot be read ({orbax_errors.explain(error)}); try an older step"
    ) from error
  for name, found in checkpoint.checksums(restored).items():
    if checksums.get(name) != found:
      raise errors.UserError(
        f"{folder}: {name} is not what was saved; the files are damaged, try an older"
        " step"
      )
  weights = model.Weights(backbone, restored["teacher"], sizes)
  return model.check(weights, str(folder))


def image_sizes(config: dict) -> dict[str, int]:
  """{"resize", "crop"} of a run's k-NN evaluation, or of its global crops if it is off.

  {} where a config has neither.
  """
  knn = config.get("knn", {})
  if knn.get("every", True) and "crop" in knn:
    return {name: knn[name] for name in ("resize", "crop")}
  if "augment" in config:
    crop = config["augment"]["global1"]["size"]
    return {"resize": model.usual_resize(crop), "crop": crop}
  return {}


def write(folder: pathlib.Path, weights: model.Weights) -> None:
  """Writes weights as the checkpoint of a teacher alone, which `read` reads."""
  orbax_errors.mute_orbax()
  state = {"teacher": jax.tree.map(np.asarray, weights.params)}
  record = {
    "step": 0,
    "config": {"backbone": weights.backbone, "knn": weights.sizes},
    "checksums": checkpoint.checksums(state),
  }
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
    writer.save(
      folder.resolve(),
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
      ),
    )


def _place(saved: Any, mesh: Mesh | None) -> Any:
  """What is saved, as abstract arrays where they are wanted."""
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
  if mesh is None:
    return jax.tree.map(lambda x: np.empty((), x.dtype), shapes)
  where = sharding.state_sharding(mesh, shapes)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where
  )
