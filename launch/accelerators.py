"""The accelerators of GKE by name: labels, topologies, machine types, hosts and chips.

A name counts chips: v5p-128 is 128 chips, 4x4x8. (Google's own v5p-256 is the same
slice, counted in TensorCores, of which a v4 or v5p chip has two.)

Sources: GKE documentation, "Plan TPUs in GKE" (machine types and topologies) and "About
GPUs in GKE" (accelerator labels); Compute Engine documentation, "Accelerator-optimized
machine family" and "TPU machines" (vCPUs, memory); xpk, src/xpk/core/
system_characteristics.py.
"""

import dataclasses
import difflib
import re

from dinojax import errors

GPUS_PER_HOST = 8
GPUS = {  # family: (cloud.google.com/gke-accelerator, machine type)
  "h100": ("nvidia-h100-80gb", "a3-highgpu-8g"),
  "h100-mega": ("nvidia-h100-mega-80gb", "a3-megagpu-8g"),
  "h200": ("nvidia-h200-141gb", "a3-ultragpu-8g"),
}
TPUS = {  # family: (cloud.google.com/gke-tpu-accelerator, machine type less its chips)
  "v5e": ("tpu-v5-lite-podslice", "ct5lp-hightpu-"),
  "v5p": ("tpu-v5p-slice", "ct5p-hightpu-"),
  "v6e": ("tpu-v6e-slice", "ct6e-standard-"),
}
_FLAT = {  # chips: (topology, chips of a host)
  1: ("1x1", 1),
  4: ("2x2", 4),
  8: ("2x4", 8),
  16: ("4x4", 4),
  32: ("4x8", 4),
  64: ("8x8", 4),
  128: ("8x16", 4),
  256: ("16x16", 4),
}
_TORUS = {
  4: ("2x2x1", 4),
  8: ("2x2x2", 4),
  16: ("2x2x4", 4),
  32: ("2x4x4", 4),
  64: ("4x4x4", 4),
  128: ("4x4x8", 4),
  192: ("4x4x12", 4),
  256: ("4x8x8", 4),
}
SLICES = {"v5e": _FLAT, "v5p": _TORUS, "v6e": _FLAT}


MACHINES = {  # machine type: (vCPUs, GB of memory)
  "ct5lp-hightpu-1t": (24, 48),
  "ct5lp-hightpu-4t": (112, 192),
  "ct5lp-hightpu-8t": (224, 384),
  "ct5p-hightpu-4t": (208, 448),
  "ct6e-standard-1t": (44, 176),
  "ct6e-standard-4t": (180, 720),
  "ct6e-standard-8t": (180, 1440),
  "a3-highgpu-8g": (208, 1872),
  "a3-megagpu-8g": (208, 1872),
  "a3-ultragpu-8g": (224, 2952),
}
# Of a machine, for the pod that trains; the rest is for the system and for buckets.
SHARE = 0.8


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """One TPU slice, or some GPU nodes."""

  name: str
  label: str
  topology: str  # "" for GPUs
  machine: str
  hosts: int
  chips_per_host: int

  @property
  def is_tpu(self) -> bool:
    """Whether these are TPUs, which come in slices."""
    return bool(self.topology)

  @property
  def chips(self) -> int:
    """JAX devices of all hosts."""
    return self.hosts * self.chips_per_host

  @property
  def resource(self) -> str:
    """Kubernetes' name for the chips of a host."""
    return "google.com/tpu" if self.is_tpu else "nvidia.com/gpu"

  @property
  def requests(self) -> dict[str, str]:
    """CPU and memory that a host's pod is sure to have, in Kubernetes' units."""
    cpus, gigabytes = MACHINES[self.machine]
    return {"cpu": f"{int(SHARE * cpus)}", "memory": f"{int(SHARE * gigabytes)}G"}

  @property
  def selector(self) -> dict[str, str]:
    """Labels of the nodes that have them."""
    if not self.is_tpu:
      return {"cloud.google.com/gke-accelerator": self.label}
    return {
      "cloud.google.com/gke-tpu-accelerator": self.label,
      "cloud.google.com/gke-tpu-topology": self.topology,
    }


def find(name: str) -> Accelerator:
  """The accelerator of a name such as "v5p-128" or "h200-128"; UserError if unknown."""
  family, _, count = name.lower().rpartition("-")
  chips = int(count) if re.fullmatch("[1-9][0-9]{0,5}", count) else 0
  if chips and chips in SLICES.get(family, {}):
    label, machine = TPUS[family]
    topology, per_host = SLICES[family][chips]
    return Accelerator(
      *(name.lower(), label, topology, f"{machine}{per_host}t"),
      hosts=chips // per_host,
      chips_per_host=per_host,
    )
  if chips and family in GPUS and chips % GPUS_PER_HOST == 0:
    return Accelerator(
      *(name.lower(), GPUS[family][0], "", GPUS[family][1]),
      hosts=chips // GPUS_PER_HOST,
      chips_per_host=GPUS_PER_HOST,
    )
  raise errors.UserError(f"--accelerator={name} {_advice(family, chips, name)}")


def _advice(family: str, chips: int, name: str) -> str:
  if chips and family in SLICES:
    sizes = sorted(SLICES[family], key=lambda size: abs(size - chips))
    near = " or ".join(f"{family}-{size}" for size in sorted(sizes[:2]))
    known = ", ".join(map(str, SLICES[family]))
    return f"is no slice: {family} has slices of {known} chips; try {near}"
  if chips and family in GPUS:
    more = -(-chips // GPUS_PER_HOST) * GPUS_PER_HOST
    return (
      f"must be a multiple of {GPUS_PER_HOST} GPUs, whole nodes; try {family}-{more}"
    )
  near = difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.5)
  if near:
    return f"is not known; did you mean {' or '.join(near)}?"
  return f"is not known; there are {', '.join([*TPUS, *GPUS])}, as in v5p-128"


def names() -> list[str]:
  """All slices, and GPU nodes by powers of two up to 16 of them."""
  tpus = [f"{family}-{chips}" for family in TPUS for chips in SLICES[family]]
  nodes = (1, 2, 4, 8, 16)
  return tpus + [f"{family}-{GPUS_PER_HOST * n}" for family in GPUS for n in nodes]


def table() -> str:
  """All accelerators by name, a line each."""
  row = "{:14} {:>5} {:>5}  {:9} {:18} {}".format
  lines = [row("name", "chips", "hosts", "topology", "machine", "label")]
  for name in names():
    a = find(name)
    lines.append(row(name, a.chips, a.hosts, a.topology or "-", a.machine, a.label))
  return "\n".join([*lines, "GPUs: any multiple of 8"])
