"""Sharding: the mesh, and the one rule for where arrays live.

Two axes: the batch is split over both, parameters with their EMA and optimiser state
over "fsdp" alone and copied along "data". On one device every sharding is trivial, and
the same program runs.
"""

import collections
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dinojax import errors, preflight

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)
SUBLANES, LANES = 16, 128  # of a TPU's tile of bfloat16, in which weights are gathered
# Smaller arrays are copied to each device: cheaper than gathering them every step.
SMALLEST_SHARDED = 2**16


def make_mesh(*, data: int, fsdp: int, devices: Sequence | None = None) -> Mesh:
  """Arranges all devices, of all processes, as a ("data", "fsdp") mesh.

  Of several TPU slices, each has rows of its own: "data" lies across slices, and "fsdp"
  inside one. On GPUs "fsdp" counts neighbours of a host first.

  Args:
    data: copies of the parameters; -1 for as many as the other axis leaves.
    fsdp: shards that parameters are split into; -1 likewise. With data=-1, no more than
      a host has GPUs.
    devices: default all devices of all processes.

  Raises:
    UserError: the product is not the number of devices, or "fsdp" leaves a slice, or
      does not make up whole axes of it.
  """
  devices = jax.devices() if devices is None else list(devices)
  slices = slice_count(devices)
  shape = preflight.mesh_shape(
    data=data,
    fsdp=fsdp,
    devices=len(devices),
    slices=slices,
    gpus_per_host=gpus_per_host(devices),
  )
  # linen modules know nothing of Explicit axes, which are make_mesh's default.
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  if slices == 1 and devices[0].platform == "gpu":
    # Hosts of GPUs one after the other, which make_mesh takes for slices.
    devices.sort(key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(*shape.values()), AXES, axis_types=auto)
  try:
    if slices == 1:
      sides = tuple(shape.values())
      return jax.make_mesh(sides, AXES, axis_types=auto, devices=devices)
    grid = mesh_utils.create_hybrid_device_mesh(
      (shape["data"] // slices, shape["fsdp"]),
      (slices, 1),
      devices,
      allow_split_physical_axes="lite" in devices[0].device_kind,  # as make_mesh
    )
  except NotImplementedError as error:
    raise errors.UserError(_other_fsdp(shape, devices)) from error
  return Mesh(grid, AXES, axis_types=auto)


def _other_fsdp(shape: dict[str, int], devices: Sequence) -> str:
  """What to give for "fsdp" where it splits an axis of a slice of TPUs."""
  sides = [len(set(axis)) for axis in zip(*(d.coords for d in devices), strict=True)]
  whole = {math.prod(s) for n in range(4) for s in itertools.combinations(sides, n)}
  best = min(sorted(whole)[::-1], key=lambda n: abs(math.log(n / shape["fsdp"])))
  return (
    f"config.mesh.fsdp={shape['fsdp']} must be a product of whole axes of a slice of"
    f" {'x'.join(map(str, sides))}; try data={len(devices) // best}, fsdp={best}"
  )


def slice_count(devices: Sequence | None = None) -> int:
  """The number of TPU slices that devices, by default JAX's own, belong to."""
  devices = jax.devices() if devices is None else devices
  if devices[0].platform != "tpu":
    return 1
  # Devices of a single slice may have no index.
  return len({getattr(device, "slice_index", 0) for device in devices})


def gpus_per_host(devices: Sequence) -> int:
  """How many GPUs each host of a run has; 0 for other devices.

  JAX numbers the hosts of GPUs as slices. GPUs that are compiled for, and need not be
  there, all have slice 0, and a process for each host.
  """
  if devices[0].platform != "gpu":
    return 0
  hosts = collections.Counter(getattr(x, "slice_index", 0) for x in devices)
  if len(hosts) == 1 and jax.process_count() == 1:
    hosts = collections.Counter(x.process_index for x in devices)
  return min(hosts.values())


def state_sharding(mesh: Mesh, state):
  """NamedSharding for each leaf of a state or parameter tree (arrays or shapes).

  The rule: split the largest dimension that fsdp divides, first among those whose
  shares are whole TPU tiles, which collectives move without rearranging; leave alone
  what is small, and the leading axis of stacked blocks, which the scan walks along.
  """

  def rule(path, leaf):
    stacked = any(getattr(part, "key", None) == "blocks" for part in path)
    spec = [None] * len(leaf.shape)
    share = [size / mesh.shape["fsdp"] for size in leaf.shape]
    axes = [i for i in range(int(stacked), len(share)) if share[i].is_integer()]

    def preference(axis):
      tile = LANES if axis == len(share) - 1 else SUBLANES
      return share[axis] % tile == 0, share[axis]

    if axes and math.prod(leaf.shape) >= SMALLEST_SHARDED:
      spec[max(axes, key=preference)] = "fsdp"
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


@jax.custom_vjp
def gather(weights: jax.Array) -> jax.Array:
  """The whole of a sharded array on every device of the mesh in context, if any.

  Explicit, since the compiler may follow the weights' sharding into the activations.
  The gradient may be scattered as the weights are.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return weights
  return jax.lax.with_sharding_constraint(weights, PartitionSpec())


gather.defvjp(lambda weights: (gather(weights), None), lambda _, grad: (grad,))


def copies(x: jax.Array) -> jax.Array:
  """[devices, ...]: `x` for each device of the mesh in context, on that device.

  The gradient is first that of each copy, for which nothing is communicated, and then
  their sum.
  """
  mesh = jax.sharding.get_abstract_mesh()
  count = 1 if mesh.empty else mesh.size
  return constrain_batch(jnp.broadcast_to(x, (count, *x.shape)))


def per_device(function: Callable) -> Callable:
  """Runs a function of trees of batch-sharded arrays on each device's slice of them.

  For kernels, which the compiler cannot split. Without a mesh, or for a batch that it
  does not divide, such as the one of a network's initialisation, nothing changes.
  """

  def apply(*arrays):
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(jax.tree.leaves(arrays)[0]) % mesh.size:
      return function(*arrays)
    mapped = jax.shard_map(function, in_specs=BATCH, out_specs=BATCH, check_vma=False)
    return mapped(*arrays)

  return apply


def platform() -> str:
  """Returns "cpu", "gpu" or "tpu": of the mesh in context, else JAX's default."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def device_kind() -> str:
  """Returns JAX's name of the devices, such as "TPU v5 lite", chosen likewise."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.device_kind if device else jax.devices()[0].device_kind


def unroll(turns: int, otherwise: int = 1) -> int:
  """How many turns of a loop with collectives in it to unroll: all, or `otherwise`.

  All on several CPU devices. XLA:CPU runs the collectives of a program one by one, in
  the program's order, but counts a loop as done once it has begun: collectives behind
  the loop start beside those in it, in another order on each device, and devices then
  wait for each other forever, or receive what was sent for another collective.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return turns if mesh.size > 1 and platform() == "cpu" else otherwise


def connect(mesh: Mesh) -> None:
  """Opens the connections of a mesh's processes on CPU; all call it at one time.

  Otherwise the first collective of each axis would, and fails where processes come to
  it more than 30 seconds apart, as after compiling. Later ones wait for half an hour.
  """
  if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
    return

  def sums(x):
    return [jax.lax.psum(x, axes) for axes in (*AXES, AXES)]

  everywhere = PartitionSpec()
  connected = jax.shard_map(sums, mesh=mesh, in_specs=everywhere, out_specs=everywhere)
  jax.block_until_ready(jax.jit(connected)(1.0))


def reduce_scatter(x: jax.Array) -> jax.Array:
  """The sum over all devices of [n, ...], a slice of n for each; in shard_map.

  By an all-to-all: on CPU, psum_scatter alone waits for other processes no longer than
  30 seconds.
  """
  count = jax.lax.axis_size(AXES)
  x = x.reshape(count, -1, *x.shape[1:])
  return jax.lax.all_to_all(x, AXES, split_axis=0, concat_axis=0).sum(0)


def local_positions(mesh: Mesh, blocks: int) -> list[int]:
  """Which of `blocks` equal slices of the batch axis this process holds, rising.

  Hosts need not hold neighbouring slices: that depends on the order of devices in the
  mesh.
  """
  where = batch_sharding(mesh).addressable_devices_indices_map((blocks,))
  return sorted({i for (part,) in where.values() for i in range(blocks)[part]})


def put_batch(mesh: Mesh, local: dict, positions: Sequence[int], blocks: int) -> dict:
  """Global arrays from this process's slices of a batch.

  Args:
    mesh: the mesh of all processes.
    local: host arrays whose leading axis holds the slices at `positions`, in order.
    positions: of `local_positions(mesh, blocks)`.
    blocks: slices of the whole batch axis, over all processes.
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
