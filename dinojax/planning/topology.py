"""TPU slices and hosts of GPUs that need not be there: devices to compile for."""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator

import jax

from dinojax import errors
from dinojax.planning import gpu_cards

TPU_PACKAGES = ("libtpu",)
# What compiles for NVIDIA GPUs, as Python imports it: XLA, ptxas, and cuDNN, of which
# JAX asks the version.
GPU_PACKAGES = ("jax_cuda13_plugin", "nvidia.cu13", "nvidia.cudnn")
# XLA takes the fastest of its own and cuBLAS's products by trying them on the card.
# Without one its own run with poor tiles, so plans use cuBLAS's.
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


def devices(name: str, *, slices: int = 1) -> list:
  """Devices by a name: v5e:8x16 is a TPU slice, h100:16x8 are 16 hosts of 8 GPUs.

  Args:
    name: of the topology.
    slices: how many TPU slices.

  Raises:
    UserError: packages are missing, or there is no such topology.
  """
  if slices < 1:
    raise errors.UserError(f"--slices={slices} must be at least 1")
  if name.partition(":")[0] in gpu_cards.CARDS:
    return _gpus(name, slices)
  os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
  with _explained(name, TPU_PACKAGES, "plan"):
    return _described(platform="tpu", topology_name=name, num_slices=slices)


def compile_for(devices: list, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """The compiled program; for GPUs that are not there, by `GPU_OPTIONS` and quietly.

  XLA:GPU warns of memory that does not suffice, and of long compilations.
  """
  if devices[0].platform != "gpu" or devices[0] in jax.devices():
    return lowered.compile()
  with _without_native_stderr():
    return lowered.compile(compiler_options=GPU_OPTIONS)


def _gpus(name, slices):
  if slices != 1:
    raise errors.UserError(
      f"--slices={slices} is for TPUs; hosts of GPUs are in the name, as h100:16x8"
    )
  family, _, shape = name.partition(":")
  if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", shape):
    raise errors.UserError(
      f"--topology={name} must name hosts and the GPUs of each, as {family}:16x8"
    )
  with _explained(name, GPU_PACKAGES, "plan-gpu"):
    return _described(
      platform="cuda",
      topology_name="",
      topology=f"1x{shape}",
      target_config=gpu_cards.target(gpu_cards.CARDS[family]),
    )


def _described(**description):
  from jax.experimental import topologies

  jax.config.update("jax_platforms", "cpu")
  with _without_native_stderr():
    return topologies.get_topology_desc(**description).devices


@contextlib.contextmanager
def _explained(name: str, packages: tuple[str, ...], extra: str) -> Iterator[None]:
  """Turns what XLA raises, or a missing package, into one line."""
  missing = [package for package in packages if not installed(package)]
  if missing:
    raise errors.UserError(
      f"--topology={name} needs packages that are missing ({', '.join(missing)}): pip"
      f" install -e '.[{extra}]'"
    )
  try:
    yield
  except Exception as error:
    reason = " ".join(str(error).split())[:300]
    raise errors.UserError(
      f"--topology={name} cannot be planned for ({reason}); v5e:8x16, v5p:4x4x8 and"
      " v6e:8x16 are of 128 chips, v5e:2x2 is the smallest; h100:16x8 is of 16 hosts"
      f" of 8 GPUs, of {', '.join(sorted(gpu_cards.CARDS))}"
    ) from error


def installed(package: str) -> bool:
  """Whether Python can import a package."""
  try:
    return importlib.util.find_spec(package) is not None
  except ModuleNotFoundError:  # of a package that this one is in
    return False


@contextlib.contextmanager
def _without_native_stderr():
  """Drops what native code prints, such as libtpu, which finds no TPU."""
  saved = os.dup(2)
  with open(os.devnull, "w") as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
