"""Features kept on disk between evaluations, under a key of all that makes them."""

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
    folder: where banks lie, one folder each; None: nothing is kept.
    what: the features, for the line that tells where they come from.
    made_of: everything the features depend on, JSON; any change is another key.
    shape: [S, B, F] of the features.
    mesh: where the bank is to be.

  Raises:
    UserError: the folder cannot be written or read.
  """
  if folder is None:
    console.say(f"{what}: computing")
    return compute()
  text = json.dumps(made_of, sort_keys=True)
  key = hashlib.sha256(text.encode()).hexdigest()[:24]
  path = pathlib.Path(folder).expanduser().resolve() / key
  with _telling(folder, path):
    path.parent.mkdir(parents=True, exist_ok=True)  # fails before the work, not after
    # Decided by one process for all: together they read, or together they compute.
    if multihost_utils.broadcast_one_to_all(jnp.int32(path.exists())):
      with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as files:
        console.say(f"{what}: from --cache={folder}")
        wanted = ocp.args.StandardRestore(_abstract(shape, mesh))
        return features.Bank(**files.restore(path, args=wanted))
  console.say(f"{what}: computing, to be kept in --cache={folder}")
  bank = compute()
  with _telling(folder, path):
    tree = {"features": bank.features, "labels": bank.labels}
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as files:
      files.save(path, args=ocp.args.StandardSave(tree))
    if jax.process_index() == 0:
      (path / "made_of.json").write_text(text)
  return bank


@contextlib.contextmanager
def _telling(folder: str, path: pathlib.Path) -> Iterator[None]:
  """What goes wrong with the files, and with nothing else, as a UserError."""
  try:
    yield
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f"--cache={folder}: {path} cannot be used ({error}); remove it, or choose another"
      " folder"
    ) from error


def _abstract(shape: tuple[int, int, int], mesh: Mesh) -> dict:
  where = NamedSharding(mesh, PartitionSpec(None, sharding.AXES))
  return {
    "features": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where),
    "labels": jax.ShapeDtypeStruct(shape[:2], jnp.int32, sharding=where),
  }
