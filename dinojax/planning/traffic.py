"""What a collective brings to a device, and how much of it from other slices or hosts.

As `hlo_ops`, of an instruction's text.
"""

import math
import re

import numpy as np

from dinojax.planning import hlo_ops

KINDS = (
  *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"),
)
# [2,4]T(1,0): 0 to 7 as [2, 4], transposed.
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


def received_bytes(op, kind: str, scope) -> int:
  """What a ring of n devices brings to each of them."""
  n = len(group(op.attributes))
  operands = sum(
    hlo_ops.main_bytes(scope[x], on_chip=True) for x in op.operands if x in scope
  )
  share = (n - 1) / n
  return int(
    {
      "all-gather": operands * (n - 1),
      "reduce-scatter": operands * share,
      "all-reduce": 2 * operands * share,
      "collective-permute": operands,
    }.get(kind, operands * share)
  )


def received_from_slices(op) -> int:
  """What one transfer between TPU slices brings to each device.

  The text names the slices as "{1,2}x{0:15}", counted from 1, and the devices in each.
  """
  size = op.arrays[0].bytes  # the others are a counter and a token
  if '_transfer_type="ALL_REDUCE"' not in op.attributes:
    return size
  named = re.search(r'_megascale_target="\{([\d,:]*)\}', op.attributes)[1]
  slices = 0
  for part in named.split(","):
    first, _, last = part.partition(":")
    slices += int(last or first) - int(first) + 1
  return 2 * size * (slices - 1) // slices


def share_between_hosts(op, kind: str, gpus_per_host: int) -> float:
  """The share of what reaches a GPU that comes from another host, 0 to 1.

  A ring enters each host once, with all that the host does not have, and the GPUs of
  the host share the way in. All-to-all and permutations have no such order.
  """
  if kind == "collective-permute":
    pairs = _lists(op.attributes, "source_target_pairs")
    leaves = [a // gpus_per_host != b // gpus_per_host for a, b in pairs]
    return sum(leaves) / max(len(leaves), 1)
  devices = group(op.attributes)
  hosts = len({device // gpus_per_host for device in devices})
  if hosts == 1:
    return 0.0
  others = len(devices) - 1
  if kind == "all-to-all":
    return (len(devices) - len(devices) // hosts) / others
  return (hosts - 1) / others


def group(attributes: str) -> list[int]:
  """Devices that a collective connects, the first group, in any form that HLO has."""
  if found := re.search(rf"replica_groups=\[\d+,(\d+)\]<={_IOTA}", attributes):
    return _iota(*found.groups()[1:])[: int(found[1])].tolist()
  if found := re.search(
    r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", attributes
  ):
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", found[1])}
    order = re.search(rf"device_ids=\({_IOTA}\)", found[2])
    ids = _iota(*order.groups()) if order else np.arange(math.prod(sizes.values()))
    kept = re.findall(r"'(\w+)'", found[3])
    corner = tuple(slice(None) if name in kept else 0 for name in sizes)
    return ids.reshape(*sizes.values())[corner].flatten().tolist()
  lists = _lists(attributes, "replica_groups")
  return lists[0] if lists else [0, 1]  # a permutation: from one to another


def _iota(shape: str, order: str | None) -> np.ndarray:
  shape = _integers(shape)
  ids = np.arange(math.prod(shape)).reshape(shape)
  return ids.transpose(_integers(order) if order else None).flatten()


def _lists(attributes, name):
  """[[0, 1], [2, 3]] of "name={{0,1},{2,3}}"."""
  found = re.search(name + r"=\{(\{[\d,{}]*\})\}", attributes)
  return [_integers(x) for x in re.findall(r"\{([\d,]+)\}", found[1])] if found else []


def _integers(text):
  return [int(number) for number in text.split(",")]
