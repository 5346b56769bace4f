"""Limits of chips: what a program can have of one, and how fast it can be at best."""

from typing import NamedTuple

from dinojax.runtime import allocator


class Chip(NamedTuple):
  """Limits of one device, from its maker's sheet.

  flops: of bfloat16 matrix products, per second. memory: bytes that a program can have.
  bandwidth: of that memory, bytes per second. network: bytes per second that reach the
  device over all its links to others. between: the same from other slices of TPUs or
  other hosts of GPUs, its share of its host's network cards. clock: cycles per second,
  where the compiler's cycles are known to be of that clock, else 0.
  """

  name: str
  flops: float
  memory: float
  bandwidth: float
  network: float
  between: float
  clock: float


GIB = 2**30


def _gpu(gib: float) -> float:
  """Bytes that JAX takes of a card's."""
  return allocator.GPU_SHARE * gib * GIB


# Between hosts of GPUs: DGX machines, with a network card for each GPU.
CHIPS = {  # by JAX's name of the device
  "TPU v5 lite": Chip("v5e", 197e12, 15.75 * GIB, 819e9, 200e9, 3.125e9, 1.5e9),
  "TPU v5": Chip("v5p", 459e12, 95.74 * GIB, 2765e9, 600e9, 6.25e9, 0),
  "TPU v6 lite": Chip("v6e", 918e12, 31.25 * GIB, 1640e9, 448e9, 12.5e9, 0),
  "NVIDIA A100-SXM4-80GB": Chip("A100", 312e12, _gpu(79.25), 2039e9, 300e9, 25e9, 0),
  "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, _gpu(79.1), 3352e9, 450e9, 50e9, 0),
  "NVIDIA H200": Chip("H200", 989e12, _gpu(141.0), 4800e9, 450e9, 50e9, 0),
  "NVIDIA B200": Chip("B200", 2250e12, _gpu(178.4), 7672e9, 900e9, 50e9, 0),
}
