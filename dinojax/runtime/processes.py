"""Processes of a run: how many there are, which of them this one is, how they join.

By flags if they are given, otherwise by the environment of a TPU slice on GKE, an srun
step of SLURM or a Job of Kubernetes. Without any of these there is one process.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Mapping

import jax
from absl import flags
from orbax.checkpoint import multihost

from dinojax import errors
from dinojax.runtime import allocator, exits, listener, peers

COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, the same on every process of a run."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator, from 0.")
MULTIHOST = flags.DEFINE_bool(
  "multihost",
  None,
  "Without --coordinator, TPU slices on GKE, SLURM and Kubernetes are known by the"
  " environment; --multihost: other clusters, too, by JAX's own means; --nomultihost:"
  " one process, also within a cluster.",
)
JOIN_SECONDS = flags.DEFINE_integer(
  "join_seconds", 300, "How long processes wait for each other at the start."
)
MEET_SECONDS = 24 * 3600  # A process that hangs is ended by its watchdog before.


@dataclasses.dataclass(frozen=True)
class Place:
  """A process among those of its run.

  number: from 0. count: of all. coordinator: HOST:PORT of process 0. means: how this
  was found. devices: numbers of this host's GPUs that are this process's; None: all.
  """

  number: int
  count: int
  coordinator: str | None = None
  means: str = ""
  devices: tuple[int, ...] | None = None


def join(*, apart: bool = False, saves: bool = False) -> tuple[int, int]:
  """Joins the other processes of a run, if there are any; before anything of JAX.

  Args:
    apart: the processes need not communicate. They stay apart, unless their devices
      belong together, and one that ends does not end the others.
    saves: SIGTERM does not end this process: `interrupts` has all save first.

  Returns:
    this process's number, and how many there are.
  """
  allocator.keep_pages()
  allocator.take_gpu_memory()
  jax.config.update("jax_enable_preemption_service", saves)
  place = _by_flags(apart=apart)
  if place is None and MULTIHOST.value is not False:
    place = detect(os.environ)
  if place is None and MULTIHOST.value:
    _join_by_jax()
    return jax.process_index(), jax.process_count()
  if place is None:
    return 0, 1
  if apart and COORDINATOR.value is None and place.means != "TPU on GKE":
    if place.devices is not None:
      jax.config.update("jax_cuda_visible_devices", ",".join(map(str, place.devices)))
    return place.number, place.count
  if place.coordinator is None:
    raise errors.UserError(
      f"process {place.number} of {place.count}, by {place.means}, cannot find process"
      " 0; set JAX_COORDINATOR_ADDRESS=HOST:PORT, or give --coordinator"
    )
  exits.join(
    peers.call_in(
      place.coordinator, place.number, place.count, seconds=JOIN_SECONDS.value
    )
  )
  # Processes have found each other without a proxy; gRPC would use one if it is set.
  jax.config.update("jax_check_proxy_envs", False)
  os.environ.update(no_grpc_proxy=place.coordinator.rpartition(":")[0])
  jax.distributed.initialize(
    place.coordinator,
    place.count,
    place.number,
    local_device_ids=place.devices,
    cluster_detection_method="deactivate",
    coordinator_bind_address=listener.bind_address(place.coordinator),
    initialization_timeout=JOIN_SECONDS.value,
  )
  print(
    f"dinojax: process {place.number} of {place.count}, by {place.means}; process 0 is"
    f" {place.coordinator}",
    file=sys.stderr,
  )
  return place.number, place.count


def meet(name: str) -> None:
  """Returns when all processes of the run have called it; each name only once."""
  barrier = multihost.get_barrier_sync_fn()  # a call, and no collective of devices
  barrier(key=name, timeout_ms=1000 * MEET_SECONDS)


def detect(environ: Mapping[str, str]) -> Place | None:
  """The place that the environment gives to this process; None if it is alone.

  Raises:
    UserError: there are others, and the environment does not say where.
  """
  return _on_gke_tpu(environ) or _under_slurm(environ) or _in_kubernetes(environ)


def _by_flags(*, apart: bool) -> Place | None:
  number, count = PROCESS_ID.value, NUM_PROCESSES.value
  given = (COORDINATOR.value, count, number)
  if given == (None, None, None):
    return None
  if None in (given[apart:]):
    raise errors.UserError("--coordinator, --num_processes, --process_id go together")
  if not 0 <= number < count:
    raise errors.UserError(
      f"--process_id={number} must be from 0 to --num_processes={count} less 1"
    )
  return Place(number, count, COORDINATOR.value, "--coordinator")


def _join_by_jax() -> None:
  try:
    jax.distributed.initialize()
  except ValueError as error:
    raise errors.UserError(
      f"--multihost finds no cluster here ({error}); leave it out on one host, or"
      " give --coordinator, --num_processes and --process_id"
    ) from error


def _on_gke_tpu(environ: Mapping[str, str]) -> Place | None:
  """A pod with TPUs: GKE sets its slice's hosts, MEGASCALE_* for several slices."""
  names = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
  if not names:
    return None
  hosts = names.split(",")
  slices = _integer(environ, "MEGASCALE_NUM_SLICES", default=1)
  if len(hosts) * slices == 1:
    return None
  before = len(hosts) * _integer(environ, "MEGASCALE_SLICE_ID", default=0)
  number = before + _integer(environ, "TPU_WORKER_ID")
  first = environ.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
  port = environ.get("JAX_COORDINATOR_PORT", "8482")  # JAX's own for TPUs
  address = f"{first.split(':')[0]}:{port}"
  return Place(number, len(hosts) * slices, address, "TPU on GKE")


def _under_slurm(environ: Mapping[str, str]) -> Place | None:
  """A task of an srun step.

  A batch script and the shell of salloc know the SLURM_NTASKS of their job, too, but
  are one process: SLURM_STEP_NUM_TASKS is 1 there, or missing.
  """
  count = _integer(environ, "SLURM_STEP_NUM_TASKS", default=1)
  if count == 1:
    return None
  # "node[07-12,20],gpu3": the first name, with the first of the numbers in brackets.
  first = re.match(r"(\[[^]]*\]|[^,[])+", environ["SLURM_STEP_NODELIST"])[0]
  host = re.sub(r"\[(\w+)[^]]*\]", r"\1", first)
  # Steps of a job, and jobs that share a host, want ports of their own.
  job, step = _integer(environ, "SLURM_JOB_ID"), _integer(environ, "SLURM_STEP_ID")
  port = 2**16 - 2**12 + (job + 61 * step) % 2**12
  # A task has one GPU of its host, unless it has a host, or SLURM shows it one alone.
  shown = environ.get("CUDA_VISIBLE_DEVICES", environ.get("ROCR_VISIBLE_DEVICES"))
  one_per_host = re.fullmatch(
    r"1(\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "")
  )
  if one_per_host or (shown is not None and "," not in shown):
    devices = None
  else:
    devices = (_integer(environ, "SLURM_LOCALID"),)
  number = _integer(environ, "SLURM_PROCID")
  return Place(number, count, f"{host}:{port}", "SLURM", devices)


def _in_kubernetes(environ: Mapping[str, str]) -> Place | None:
  """An indexed Job, whose manifest has to name the number of pods and the first one.

  The variables are those of Kubeflow's Trainer.
  """
  index = _integer(environ, "JOB_COMPLETION_INDEX", default=0)
  number = _integer(environ, "JAX_PROCESS_ID", default=index)
  count = _integer(environ, "JAX_NUM_PROCESSES", default=1)
  if not 0 <= number < count:
    raise errors.UserError(
      f"this is pod {number} of a Job, but JAX_NUM_PROCESSES="
      f"{environ.get('JAX_NUM_PROCESSES', '')}; set it to the number of pods, and"
      " JAX_COORDINATOR_ADDRESS=HOST:PORT to the first, or give --nomultihost for a run"
      " of each pod's own"
    )
  if count == 1:
    return None
  return Place(number, count, environ.get("JAX_COORDINATOR_ADDRESS"), "Kubernetes")


def _integer(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
  value = environ.get(name) or default
  try:
    return int(value)
  except (TypeError, ValueError) as error:
    raise errors.UserError(
      f"{name}={value or ''} in the environment must be a number; or give"
      " --coordinator, --num_processes and --process_id"
    ) from error
