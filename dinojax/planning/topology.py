"""TPU slices that need not be there: their devices, to compile for."""

import contextlib
import importlib.util
import os

import jax

from dinojax import errors


def devices(name: str, *, slices: int = 1) -> list:
  """The devices of so many TPU slices of a name such as v5e:8x16.

  Raises:
    UserError: libtpu is missing, or knows no such slice.
  """
  if slices < 1:
    raise errors.UserError(f"--slices={slices} must be at least 1")
  from jax.experimental import topologies

  os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
  jax.config.update("jax_platforms", "cpu")
  try:
    with _without_native_stderr():
      found = topologies.get_topology_desc(
        platform="tpu", topology_name=name, num_slices=slices
      )
      return found.devices
  except Exception as error:
    reason = " ".join(str(error).split())[:300]
    if importlib.util.find_spec("libtpu") is None:
      reason = "libtpu is missing: pip install -e '.[plan]'"
    raise errors.UserError(
      f"--topology={name} cannot be planned for ({reason}); v5e:8x16, v5p:4x4x8 and"
      " v6e:8x16 are of 128 chips, v5e:2x2 is the smallest"
    ) from error


@contextlib.contextmanager
def _without_native_stderr():
  """Drops what native code prints: libtpu warns that it finds no TPU."""
  saved = os.dup(2)
  with open(os.devnull, "w") as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
