"""Cache of features on disk, under a key of everything that they depend on."""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dinojax import errors, sharding
from dinojax.evals import features
from dinojax.reporting import console
from dinojax.runtime import orbax_errors, ownership

DAMAGE = (*orbax_errors.IO_ERRORS, KeyError)  # as missing and short files raise


def cached(
  compute: Callable[[], features.Bank],
  folder: str | None,
  *,
  what: str,
  made_of: dict[str, Any],
  shape: tuple[int, int, int],
  mesh: Mesh,
) -> features.Bank:
  """The bank that `compute` makes, from the folder if it was made before.

  Args:
    compute: makes the bank.
    folder: where banks lie, a sub-folder each; None: nothing is kept.
    what: the features, for the line that says where they come from.
    made_of: everything the features depend on, JSON; any change is another key.
    shape: [S, B, F] of the features.
    mesh: where the bank is to be.

  Raises:
    UserError: the folder cannot be written or read, or another process writes there.
      One that has no room for the features costs a note, not the features.
  """
  if folder is None:
    console.say(f"{what}: computing")
    return compute()
  orbax_errors.mute_orbax()
  text = json.dumps(made_of, sort_keys=True)
  key = hashlib.sha256(text.encode()).hexdigest()[:24]
  path = pathlib.Path(folder).expanduser().resolve() / key
  with contextlib.ExitStack() as stack:
    if not _exists(path) and jax.process_index() == 0:
      label = f"--cache={folder}, {what.partition(',')[0]},"
      stack.enter_context(ownership.owned(path.parent, key, label=label))
    if _exists(path):  # perhaps by now: another process has made it
      console.say(f"{what}: from --cache={folder}")
      return _read(path, folder, shape, mesh)
    console.say(f"{what}: computing, to be kept in --cache={folder}")
    bank = compute()
    try:
      _write(path, folder, bank, text)
    except errors.UserError as error:
      if jax.process_count() > 1:  # of which others may wait for this one
        raise
      console.say(f"note: the features are not kept: {error}")
  return bank


def _exists(path: pathlib.Path) -> bool:
  """Whether it does, by process 0: all read the cache together, or all compute."""
  return bool(multihost_utils.broadcast_one_to_all(jnp.int32(path.exists())))


def _write(path: pathlib.Path, folder: str, bank: features.Bank, made_of: str) -> None:
  with (
    _damage_as_user_error(folder, path),
    ocp.Checkpointer(ocp.StandardCheckpointHandler()) as files,
  ):
    tree = {"features": bank.features, "labels": bank.labels}
    files.save(path, args=ocp.args.StandardSave(tree))
    if jax.process_index() == 0:
      (path / "made_of.json").write_text(made_of)


def _read(path: pathlib.Path, folder: str, shape: tuple, mesh: Mesh) -> features.Bank:
  wanted = ocp.args.StandardRestore(_abstract(shape, mesh))
  with (
    _damage_as_user_error(folder, path),
    ocp.Checkpointer(ocp.StandardCheckpointHandler()) as files,
  ):
    return features.Bank(**files.restore(path, args=wanted))


@contextlib.contextmanager
def _damage_as_user_error(folder: str, path: pathlib.Path) -> Iterator[None]:
  """Turns what goes wrong with the files into a UserError."""
  try:
    yield
  except DAMAGE as error:
    raise errors.UserError(
      f"--cache={folder}: {path} cannot be used ({orbax_errors.explain(error)}); remove"
      " it, or choose another folder"
    ) from error


def _abstract(shape: tuple[int, int, int], mesh: Mesh) -> dict:
  where = NamedSharding(mesh, PartitionSpec(None, sharding.AXES))
  return {
    "features": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where),
    "labels": jax.ShapeDtypeStruct(shape[:2], jnp.int32, sharding=where),
  }
