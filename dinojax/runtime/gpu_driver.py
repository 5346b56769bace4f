"""NVIDIA's driver: why JAX runs on the CPU of a machine that has a GPU."""

import importlib.util
import os
import pathlib
import re
from collections.abc import Sequence

import jax

VERSION_FILE = "/proc/driver/nvidia/version"
OLDEST_DRIVER = {13: 580, 12: 525}  # of each CUDA that JAX has packages for


def plugins() -> list[int]:
  """The versions of CUDA for which JAX is installed."""
  return [v for v in OLDEST_DRIVER if importlib.util.find_spec(f"jax_cuda{v}_plugin")]


def doubts(
  version_file: str | os.PathLike = VERSION_FILE,
  *,
  installed: Sequence[int] | None = None,
) -> list[str]:
  """A line that says why a GPU is not used; none if that is meant, or there is no GPU.

  Args:
    version_file: where the driver states its version.
    installed: as of `plugins`, which is asked if it is None.
  """
  meant = "cpu" in (jax.config.jax_platforms or "")
  hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
  if meant or hidden or jax.default_backend() != "cpu":
    return []
  try:
    text = pathlib.Path(version_file).read_text()
  except OSError:
    return []
  found = re.search(r"Kernel Module.*?\s(\d+)\.\d", text)
  driver = int(found[1]) if found else max(OLDEST_DRIVER.values())
  installed = plugins() if installed is None else installed
  fitting = [v for v, oldest in OLDEST_DRIVER.items() if driver >= oldest]
  oldest = min(OLDEST_DRIVER, key=OLDEST_DRIVER.get)
  if not fitting:
    reason = (
      f"its driver {driver} is too old for CUDA {oldest}: install driver"
      f" {OLDEST_DRIVER[oldest]} or newer"
    )
  elif not installed:
    reason = f"JAX is installed for CPUs alone: pip install -e '.[cuda{fitting[0]}]'"
  elif not set(installed) & set(fitting):
    needed = OLDEST_DRIVER[installed[0]]
    reason = (
      f"CUDA {installed[0]} needs driver {needed} and this is {driver}: pip uninstall"
      f" jax-cuda{installed[0]}-plugin; pip install -e '.[cuda{fitting[0]}]'"
    )
  else:
    reason = "JAX cannot start it; JAX's own warnings above say why"
  return [f"the NVIDIA GPU of this machine is not used, since {reason}"]
