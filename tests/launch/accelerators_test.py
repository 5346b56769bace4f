"""Accelerators by name: what GKE calls them, how many hosts and chips they have."""

import math

import pytest

from dinojax import errors
from launch import accelerators

# From GKE's tables: label, topology, machine type, hosts, chips of each.
KNOWN = {
  "v5e-1": ("tpu-v5-lite-podslice", "1x1", "ct5lp-hightpu-1t", 1, 1),
  "v5e-4": ("tpu-v5-lite-podslice", "2x2", "ct5lp-hightpu-4t", 1, 4),
  "v5e-8": ("tpu-v5-lite-podslice", "2x4", "ct5lp-hightpu-8t", 1, 8),
  "v5e-128": ("tpu-v5-lite-podslice", "8x16", "ct5lp-hightpu-4t", 32, 4),
  "v5e-256": ("tpu-v5-lite-podslice", "16x16", "ct5lp-hightpu-4t", 64, 4),
  "v5p-4": ("tpu-v5p-slice", "2x2x1", "ct5p-hightpu-4t", 1, 4),
  "v5p-128": ("tpu-v5p-slice", "4x4x8", "ct5p-hightpu-4t", 32, 4),
  "v5p-256": ("tpu-v5p-slice", "4x8x8", "ct5p-hightpu-4t", 64, 4),
  "v6e-1": ("tpu-v6e-slice", "1x1", "ct6e-standard-1t", 1, 1),
  "v6e-8": ("tpu-v6e-slice", "2x4", "ct6e-standard-8t", 1, 8),
  "v6e-128": ("tpu-v6e-slice", "8x16", "ct6e-standard-4t", 32, 4),
  "h100-8": ("nvidia-h100-80gb", "", "a3-highgpu-8g", 1, 8),
  "h100-128": ("nvidia-h100-80gb", "", "a3-highgpu-8g", 16, 8),
  "h100-mega-128": ("nvidia-h100-mega-80gb", "", "a3-megagpu-8g", 16, 8),
  "h200-128": ("nvidia-h200-141gb", "", "a3-ultragpu-8g", 16, 8),
  "h200-256": ("nvidia-h200-141gb", "", "a3-ultragpu-8g", 32, 8),
  "H200-24": ("nvidia-h200-141gb", "", "a3-ultragpu-8g", 3, 8),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_name_gives_what_gke_calls_it(name):
  found = accelerators.find(name)
  shown = (found.label, found.topology, found.machine, found.hosts)
  assert (*shown, found.chips_per_host) == KNOWN[name]


def test_a_slice_has_the_chips_of_its_topology_and_machines_that_hold_them():
  for family, slices in accelerators.SLICES.items():
    for chips, (topology, per_host) in slices.items():
      assert math.prod(map(int, topology.split("x"))) == chips
      found = accelerators.find(f"{family}-{chips}")
      assert found.machine.endswith(f"-{per_host}t")
      assert chips % per_host == 0


def test_a_pod_asks_for_most_of_its_machine_and_leaves_the_system_its_share():
  # What GKE keeps of a node: some CPUs for its daemons, and of memory a quarter of the
  # first 4 GiB, a fifth of the next 4, a tenth of 8, 6% of 112 and 2% of the rest.
  for name in accelerators.names():
    found = accelerators.find(name)
    cpus, gigabytes = accelerators.MACHINES[found.machine]
    kept = 1 + 0.8 + 0.8 + 0.06 * min(gigabytes, 112) + 0.02 * gigabytes
    asked = found.requests
    assert cpus / 2 < int(asked["cpu"]) <= cpus - 4
    assert gigabytes / 2 < int(asked["memory"].removesuffix("G")) < gigabytes - kept


def test_every_slice_of_tpus_from_one_chip_to_256_is_there():
  counts = [1, 4, 8, 16, 32, 64, 128, 256]
  for family in ("v5e", "v6e"):
    assert [n for n in accelerators.names() if n.startswith(family)] == [
      f"{family}-{n}" for n in counts
    ]
  assert {f"v5p-{n}" for n in counts[1:]} < set(accelerators.names())


@pytest.mark.parametrize(
  ("name", "advice"),
  [
    ("h20-128", "is not known; did you mean h200-128 or h100-128 or h200-8?"),
    ("tpu", "is not known; there are v5e, v5p, v6e, h100, h100-mega, h200, as in v5p"),
    ("v5p-0", "is not known; did you mean v5p-8"),
    ("v5p-100", "try v5p-64 or v5p-128"),
    ("v5p-1", "is no slice: v5p has slices of 4, 8, 16, 32, 64, 128, 192, 256 chips"),
    ("v6e-512", "try v6e-128 or v6e-256"),
    ("h100-12", "must be a multiple of 8 GPUs, whole nodes; try h100-16"),
  ],
)
def test_a_wrong_name_is_told_with_the_nearest_right_ones(name, advice):
  with pytest.raises(errors.UserError) as raised:
    accelerators.find(name)
  assert str(raised.value).startswith(f"--accelerator={name} ")
  assert advice in str(raised.value)


def test_the_table_has_a_line_for_each_name():
  lines = accelerators.table().splitlines()[1:-1]
  assert [line.split()[0] for line in lines] == accelerators.names()
