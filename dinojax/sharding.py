"""The mesh, and the one rule for where arrays live.

Two axes: the batch is split over both, parameters with their EMA and optimiser state
over "fsdp" alone and copied along "data". On one device every sharding is trivial, and
the same program runs.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dinojax import errors

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)
# Smaller arrays are copied to each device: cheaper than gathering them every step.
SMALLEST_SHARDED = 2**16


def make_mesh(*, data: int, fsdp: int) -> Mesh:
  """Arranges all devices, of all processes, as a ("data", "fsdp") mesh.

  Args:
    data: copies of the parameters; -1 for as many as the other axis leaves.
    fsdp: shares that parameters are split into; -1 likewise.

  Raises:
    UserError: the product is not the number of devices.
  """
  count = jax.device_count()
  shape = {"data": data, "fsdp": fsdp}
  for axis, other in (("data", fsdp), ("fsdp", data)):
    if shape[axis] == -1 and other > 0:
      shape[axis] = count // other
  if min(shape.values()) < 1 or math.prod(shape.values()) != count:
    raise errors.UserError(
      f"config.mesh.data={data} times config.mesh.fsdp={fsdp} must be the number of"
      f" devices, {count}; try data=1, fsdp=-1"
    )
  # linen modules know nothing of Explicit axes, which are make_mesh's default.
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.make_mesh(tuple(shape.values()), AXES, axis_types=auto)


def state_sharding(mesh: Mesh, state):
  """NamedSharding for each leaf of a state or parameter tree (arrays or shapes).

  The rule: split the largest dimension that fsdp divides; leave alone what is small,
  and the leading axis of stacked blocks, which the scan over layers walks along.
  """

  def rule(path, leaf):
    stacked = any(getattr(part, "key", None) == "blocks" for part in path)
    spec = [None] * len(leaf.shape)
    axes = [
      axis
      for axis in range(int(stacked), len(leaf.shape))
      if leaf.shape[axis] % mesh.shape["fsdp"] == 0
    ]
    if axes and math.prod(leaf.shape) >= SMALLEST_SHARDED:
      spec[max(axes, key=lambda axis: leaf.shape[axis])] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(rule, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Leading axis split over all devices."""
  return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def constrain_batch(x: jax.Array) -> jax.Array:
  """Pins the leading axis of `x` to the batch axes of the mesh in context, if any.

  Without it the compiler may follow the weights' sharding into the activations. Call it
  under `jax.set_mesh`; outside of one it changes nothing.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, BATCH)


def local_positions(mesh: Mesh, blocks: int) -> list[int]:
  """Which of `blocks` equal parts of the batch axis this process holds, rising.

  Hosts need not hold neighbouring parts: that depends on how the mesh winds through the
  machine.
  """
  where = batch_sharding(mesh).addressable_devices_indices_map((blocks,))
  return sorted({i for (part,) in where.values() for i in range(blocks)[part]})


def put_batch(mesh: Mesh, local: dict, positions: Sequence[int], blocks: int) -> dict:
  """Global arrays from this process's parts of a batch.

  Args:
    mesh: the mesh of all processes.
    local: host arrays whose leading axis holds the parts at `positions`, in order.
    positions: of `local_positions(mesh, blocks)`.
    blocks: parts of the whole batch axis, over all processes.
  """
  slot = {position: i for i, position in enumerate(positions)}

  def put(x):
    rows = len(x) // len(positions)
    parts = x.reshape(len(positions), rows, *x.shape[1:])

    def shard(index):
      start, stop, _ = index[0].indices(blocks * rows)
      wanted = [slot[i] for i in range(start // rows, stop // rows)]
      return np.concatenate([parts[i] for i in wanted])

    shape = (blocks * rows, *x.shape[1:])
    return jax.make_array_from_callback(shape, batch_sharding(mesh), shard)

  return jax.tree.map(put, local)
