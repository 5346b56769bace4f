"""NVIDIA cards that need not be there, as XLA wants them described to compile for them.

XLA reads a GpuTargetConfigProto in text form. Sources of the figures: NVIDIA's data
sheets of A100, H100, H200 and B200, the tables of compute capabilities in the CUDA C++
Programming Guide, and, for what neither states (clock, bytes of memory that a driver
reports), XLA's own descriptions of the same cards.
"""

from typing import NamedTuple

KIB = 2**10


class Card(NamedTuple):
  """What sets a card apart for the compiler.

  kind: JAX's name of the device. capability: of CUDA, as (9, 0). features: that the
  instructions of its tensor cores are used ("ACCELERATED_FEATURES"), or "NONE". cores:
  streaming multiprocessors. lanes: float32 units of each. gigahertz: highest clock.
  memory, l2: bytes. bandwidth: of the memory, bytes per second. shared: KiB of shared
  memory of a multiprocessor.
  """

  kind: str
  capability: tuple[int, int]
  features: str
  cores: int
  lanes: int
  gigahertz: float
  memory: int
  bandwidth: int
  l2: int
  shared: int


HOPPER = dict(
  capability=(9, 0),
  features="ACCELERATED_FEATURES",
  cores=132,
  lanes=128,
  gigahertz=1.98,
  l2=50 * KIB**2,
  shared=228,
)
CARDS = {  # by the name of a topology
  "a100": Card(
    kind="NVIDIA A100-SXM4-80GB",
    capability=(8, 0),
    features="NONE",
    cores=108,
    lanes=64,
    gigahertz=1.41,
    memory=85_100_068_864,
    bandwidth=2_039_000_000_000,
    l2=40 * KIB**2,
    shared=164,
  ),
  "h100": Card(
    kind="NVIDIA H100 80GB HBM3",
    memory=84_942_979_072,
    bandwidth=3_352_000_000_000,
    **HOPPER,
  ),
  "h200": Card(
    kind="NVIDIA H200",
    memory=151_397_597_184,
    bandwidth=4_800_000_000_000,
    **HOPPER,
  ),
  "b200": Card(
    kind="NVIDIA B200",
    capability=(10, 0),
    features="ACCELERATED_FEATURES",
    cores=148,
    lanes=128,
    gigahertz=1.965,
    memory=191_514_411_008,
    bandwidth=7_672_000_000_000,
    l2=int(126.5 * KIB**2),
    shared=228,
  ),
}


def target(card: Card) -> str:
  """The text of a card's GpuTargetConfigProto."""
  major, minor = card.capability
  return f"""
    gpu_device_info {{
      name: "{card.kind}"
      cuda_compute_capability {{
        major: {major} minor: {minor} feature_extension: {card.features}
      }}
      core_count: {card.cores}
      fpus_per_core: {card.lanes}
      clock_rate_ghz: {card.gigahertz}
      device_memory_size: {card.memory}
      memory_bandwidth: {card.bandwidth}
      l2_cache_size: {card.l2}
      shared_memory_per_core: {card.shared * KIB}
      shared_memory_per_block: {48 * KIB}
      shared_memory_per_block_optin: {(card.shared - 1) * KIB}
      registers_per_core_limit: {64 * KIB}
      registers_per_block_limit: {64 * KIB}
      threads_per_warp: 32
      threads_per_block_limit: 1024
      threads_per_core_limit: 2048
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      block_dim_limit_x: {2**31 - 1}
      block_dim_limit_y: {2**16 - 1}
      block_dim_limit_z: {2**16 - 1}
      device_address_bits: 64
      driver_version: "13.0.0"
      runtime_version: "12.8.0"
      compile_time_toolkit_version: "12.8.0"
      dnn_version: "9.12.0"
    }}
    platform_name: "CUDA"
    runtime_version {{ major: 12 minor: 8 }}
    dnn_version_info {{ major: 9 minor: 12 }}
    device_description_str: "{card.kind}"
  """
