"""The devices of TPU slices that need not be there, to compile for."""

import contextlib
import importlib.util
import os

import jax

from dinojax import errors


def devices(name: str) -> list:
  """The devices of a TPU slice that need not be there.

  Raises:
    UserError: libtpu is missing, or knows no such slice.
  """
  from jax.experimental import topologies

  os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
  jax.config.update("jax_platforms", "cpu")
  try:
    with _without_native_stderr():
      return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
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
  """Drops what native code prints: libtpu is alarmed to find no TPU."""
  saved = os.dup(2)
  with open(os.devnull, "w") as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
