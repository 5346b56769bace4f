"""Checkpoints of our own: the teacher of a run, and converted weights.

A run's checkpoint holds student, teacher and optimiser, eight times the backbone. Only
the parts that are asked for are read from disk.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from dinojax import checksums, errors, sharding
from dinojax.runtime import orbax_errors
from dinojax.weights import model


def find(path: pathlib.Path, step: int | None) -> pathlib.Path:
  """The folder of one checkpoint: `path` itself, or a step of the run at `path`.

  Args:
    path: a run's workdir, or the folder of a checkpoint.
    step: completed updates; None: the newest.

  Raises:
    UserError: there is none.
  """
  path = path.resolve()  # as Orbax wants it
  if not errors.is_utf8(str(path)):
    raise errors.UserError(f"{path} is not UTF-8, which Orbax needs; rename it")
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
  """(workdir, step) of the checkpoint that `find` finds; None if no run made it."""
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
  """The record of a checkpoint, with config and checksums; UserError if damaged."""
  with _damage_in_one_line(folder):
    record = ocp.JsonCheckpointHandler().restore(folder / "record")
  for name in ("config", "checksums"):
    if not isinstance(record, dict) or not isinstance(record.get(name), dict):
      raise errors.UserError(
        f"{folder} cannot be read (its record has no {name}); try an older step"
      )
  number = folder.name if folder.parent.name == "checkpoints" else ""
  if number.isdecimal() and record.get("step") != int(number):
    raise errors.UserError(
      f"{folder} cannot be read (its record is of step {record.get('step')}: a copy);"
      " give another step, or the copy another name outside of checkpoints/"
    )
  return record


@contextlib.contextmanager
def _damage_in_one_line(folder: pathlib.Path) -> Iterator[None]:
  """Turns what Orbax raises for damaged files, which is anything, into a UserError."""
  try:
    yield
  except Exception as error:
    if orbax_errors.is_one_of(error, errors.OUT_OF_REACH):
      raise errors.TemporaryError(
        f"{folder} is out of reach ({orbax_errors.explain(error)})"
      ) from error
    raise errors.UserError(
      f"{folder} cannot be read ({orbax_errors.explain(error)}); try an older step"
    ) from error


def read(
  folder: pathlib.Path, *, mesh: Mesh | None = None, parts: tuple[str, ...]
) -> model.Weights:
  """The teacher of a checkpoint.

  Args:
    folder: of `find`.
    mesh: to restore to, sharded; None: NumPy arrays.
    parts: "backbone", and "dino_head", "ibot_head" where the checkpoint has them.

  Raises:
    UserError: it cannot be read, is not what was saved, or is not finite.
  """
  record = read_record(folder)
  orbax_errors.mute_orbax()
  fields = record["config"].get("backbone")
  backbone = model.architecture(fields, f"{folder}: its config")
  handler = ocp.PyTreeCheckpointHandler()
  with _damage_in_one_line(folder):
    saved = handler.metadata(folder / "state").tree["teacher"]
  if not isinstance(saved, Mapping) or "backbone" not in saved:
    raise errors.UserError(f"{folder} cannot be read (no backbone); try an older step")
  teacher = {name: saved[name] for name in parts if name in saved}
  model.check_shapes(backbone, teacher, str(folder))  # before they take memory
  if {x.dtype for x in jax.tree.leaves(teacher)} != {np.dtype("float32")}:
    raise errors.UserError(
      f"{folder} cannot be read (its weights are not float32); try an older step"
    )
  abstract = {"teacher": _place(teacher, mesh)}
  with _damage_in_one_line(folder):
    restored = handler.restore(
      folder / "state",
      args=ocp.args.PyTreeRestore(
        item=abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
      ),
    )
  for name, found in checksums.of(restored).items():
    if record["checksums"].get(name) != found:
      raise errors.UserError(
        f"{folder}: {name} is not what was saved; the files are damaged, try an older"
        " step"
      )
  counts = model.flatten(_count_not_finite(restored["teacher"]))
  model.refuse_not_finite(counts, str(folder))
  return model.Weights(backbone, restored["teacher"], image_sizes(record["config"]))


def _count_not_finite(params: Any) -> Any:
  """How many values of each array are not; on the host as in `checksums.of`."""
  if all(map(checksums.is_on_host, jax.tree.leaves(params))):
    return jax.tree.map(lambda x: np.count_nonzero(~np.isfinite(x)), params)
  return jax.device_get(_count_on_devices(params))


@jax.jit
def _count_on_devices(params: Any) -> Any:
  return jax.tree.map(lambda x: (~jnp.isfinite(x)).sum(), params)


def image_sizes(config: dict) -> dict[str, int]:
  """{"resize", "crop"} of a run's k-NN evaluation, or of its global crops if it is off.

  {} where a config has neither.
  """
  knn = _group(config, "knn")
  if knn.get("every", True) and "crop" in knn:
    sizes = {name: knn.get(name) for name in ("resize", "crop")}
  else:
    crop = _group(_group(config, "augment"), "global1").get("size")
    resize = model.usual_resize(crop) if type(crop) is int else None
    sizes = {"resize": resize, "crop": crop}
  return sizes if all(type(x) is int and x > 0 for x in sizes.values()) else {}


def _group(config: dict, name: str) -> dict:
  """A group of a config that any JSON may be."""
  group = config.get(name)
  return group if isinstance(group, dict) else {}


def write(folder: pathlib.Path, weights: model.Weights) -> None:
  """Writes weights as a checkpoint that holds a teacher alone; `read` reads it."""
  orbax_errors.mute_orbax()
  state = {"teacher": jax.tree.map(np.asarray, weights.params)}
  record = {
    "step": 0,
    "config": {"backbone": weights.backbone, "knn": weights.sizes},
    "checksums": checksums.of(state),
  }
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
    writer.save(
      folder.resolve(),
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
      ),
    )


def _place(saved: Any, mesh: Mesh | None) -> Any:
  """Saved arrays in the abstract, with the shardings to restore to."""
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
  if mesh is None:
    return jax.tree.map(lambda x: np.empty((), x.dtype), shapes)
  where = sharding.state_sharding(mesh, shapes)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where
  )
