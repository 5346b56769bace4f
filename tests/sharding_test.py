"""Where arrays live: the one rule, the mesh, and the way of a batch to its devices."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from dinojax import errors, sharding
from dinojax.planning import topology


def make_mesh(order, shape):
  devices = np.array(jax.devices())[list(order)].reshape(shape)
  return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 2)


def spec(mesh, shape, *names):
  """The rule's answer for an array at the path `names`."""
  tree = jax.ShapeDtypeStruct(shape, np.float32)
  for name in reversed(names):
    tree = {name: tree}
  (leaf,) = jax.tree.leaves(sharding.state_sharding(mesh, tree))
  return leaf.spec


def test_the_largest_dimension_that_fsdp_divides_is_split():
  mesh = sharding.make_mesh(data=2, fsdp=4)
  assert spec(mesh, (512, 1024), "w") == PartitionSpec(None, "fsdp")
  assert spec(mesh, (1024, 512), "w") == PartitionSpec("fsdp", None)
  assert spec(mesh, (512, 1026), "w") == PartitionSpec("fsdp", None)
  assert spec(mesh, (131_072,), "gain") == PartitionSpec("fsdp")


def test_shares_that_are_whole_tiles_come_first():
  mesh = sharding.make_mesh(data=1, fsdp=8)
  # 4608 / 8 = 576 are no whole 128 lanes, 1536 / 8 = 192 are whole 16 sublanes.
  assert spec(mesh, (1536, 4608), "w") == PartitionSpec("fsdp", None)
  assert spec(mesh, (1536, 8192), "w") == PartitionSpec(None, "fsdp")
  assert spec(mesh, (8, 8200), "w") == PartitionSpec(None, "fsdp")  # neither: larger


def test_an_array_that_fsdp_divides_nowhere_is_copied():
  mesh = sharding.make_mesh(data=1, fsdp=8)
  assert spec(mesh, (601, 301), "w") == PartitionSpec(None, None)
  assert spec(mesh, (), "step") == PartitionSpec()


def test_small_arrays_are_copied():
  mesh = sharding.make_mesh(data=1, fsdp=8)
  assert spec(mesh, (256, 256), "w") == PartitionSpec("fsdp", None)
  assert spec(mesh, (256, 248), "w") == PartitionSpec(None, None)


def test_the_leading_axis_of_stacked_blocks_is_never_split():
  mesh = sharding.make_mesh(data=1, fsdp=8)
  path = ("student", "backbone", "blocks", "attn", "proj", "kernel")
  assert spec(mesh, (1024, 16, 32), *path) == PartitionSpec(None, None, "fsdp")
  assert spec(mesh, (4096, 33), *path[:-1], "bias") == PartitionSpec(None, None)
  assert spec(mesh, (4096, 33), "head", "kernel") == PartitionSpec("fsdp", None)


def test_a_split_parameter_takes_its_share_on_each_device():
  mesh = sharding.make_mesh(data=2, fsdp=4)
  array = np.arange(512 * 256, dtype=np.float32).reshape(512, 256)
  placed = jax.device_put(array, sharding.state_sharding(mesh, array))
  assert {s.data.shape for s in placed.addressable_shards} == {(128, 256)}
  assert len({s.index[0].start for s in placed.addressable_shards}) == 4
  np.testing.assert_array_equal(placed, array)


@pytest.mark.parametrize(
  "data, fsdp, shape",
  [(1, -1, (1, 8)), (-1, 1, (8, 1)), (2, -1, (2, 4)), (-1, 2, (4, 2)), (4, 2, (4, 2))],
)
def test_a_mesh_takes_all_devices(data, fsdp, shape):
  mesh = sharding.make_mesh(data=data, fsdp=fsdp)
  assert mesh.devices.shape == shape and mesh.axis_names == ("data", "fsdp")
  assert mesh.axis_types == (AxisType.Auto,) * 2


@pytest.mark.parametrize(
  "data, fsdp",
  [(3, -1), (-1, 3), (2, 2), (16, 1), (-1, -1), (0, -1), (-1, 0), (-2, -4)],
)
def test_a_mesh_of_another_number_of_devices_is_refused(data, fsdp):
  with pytest.raises(errors.UserError) as caught:
    sharding.make_mesh(data=data, fsdp=fsdp)
  assert str(caught.value) == (
    f"config.mesh.data={data} times config.mesh.fsdp={fsdp} must be the number of"
    " devices, 8; try data=1, fsdp=-1"
  )


@pytest.fixture(scope="module")
def two_slices():
  """Two slices of 16 TPUs, as the compiler sees them, in no order."""
  devices = topology.devices("v5e:4x4", slices=2)
  return [devices[i] for i in np.random.default_rng(0).permutation(len(devices))]


@pytest.mark.parametrize("data, fsdp", [(2, 16), (-1, 8), (2, -1), (32, 1)])
def test_data_lies_across_slices_and_fsdp_within_one(two_slices, data, fsdp):
  mesh = sharding.make_mesh(data=data, fsdp=fsdp, devices=two_slices)
  slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  assert (slices == slices[:, :1]).all()
  assert (np.bincount(slices[:, 0]) == len(slices) / 2).all()
  assert set(mesh.devices.flat) == set(two_slices)


def test_one_slice_is_laid_out_as_jax_does():
  devices = topology.devices("v5e:4x4")
  assert sharding.slice_count(devices) == 1
  found = sharding.make_mesh(data=1, fsdp=-1, devices=devices).devices
  wanted = jax.make_mesh((1, 16), ("data", "fsdp"), devices=devices).devices
  assert (found == wanted).all()


@pytest.mark.parametrize("fsdp, data, fits", [(16, 8, 32), (2, 64, 4)])
def test_a_mesh_that_splits_an_axis_of_a_slice_is_refused(fsdp, data, fits):
  devices = topology.devices("v5p:8x8x4")
  with pytest.raises(errors.UserError) as caught:
    sharding.make_mesh(data=-1, fsdp=fsdp, devices=devices)
  assert str(caught.value) == (
    f"config.mesh.fsdp={fsdp} must be a product of whole axes of a slice of 8x8x4; try"
    f" data={data}, fsdp={fits}"
  )
  mesh = sharding.make_mesh(data=data, fsdp=fits, devices=devices)
  assert dict(mesh.shape) == {"data": data, "fsdp": fits}


@pytest.mark.parametrize("data, fsdp", [(1, -1), (1, 32)])
def test_a_mesh_that_gathers_weights_across_slices_is_refused(two_slices, data, fsdp):
  with pytest.raises(errors.UserError) as caught:
    sharding.make_mesh(data=data, fsdp=fsdp, devices=two_slices)
  assert str(caught.value) == (
    "config.mesh.fsdp=32 must divide the 16 devices of each of 2 slices, within which"
    " weights are gathered; try data=2, fsdp=16"
  )
  assert sharding.make_mesh(data=2, fsdp=16, devices=two_slices).size == 32


def gpu(host, number, *, slice_index):
  """What is known of a GPU of a run."""
  return types.SimpleNamespace(
    platform="gpu", process_index=host, id=number, slice_index=slice_index
  )


@pytest.mark.parametrize(
  "processes, devices, wanted",
  [
    (1, [gpu(i // 8, i, slice_index=0) for i in range(16)], 8),  # compiled for
    (2, [gpu(i // 8, i, slice_index=i // 8) for i in range(16)], 8),
    (16, [gpu(i, i, slice_index=i // 8) for i in range(16)], 8),  # a process per GPU
    (8, [gpu(i, i, slice_index=0) for i in range(8)], 8),
    (1, [gpu(0, 0, slice_index=0)], 1),
  ],
)
def test_the_gpus_of_a_host_are_counted_whatever_the_processes(
  processes, devices, wanted, monkeypatch
):
  monkeypatch.setattr(jax, "process_count", lambda: processes)
  assert sharding.gpus_per_host(devices) == wanted


def test_other_devices_have_no_hosts_of_gpus():
  assert sharding.gpus_per_host(jax.devices()) == 0


MESHES = {
  "rows": ((0, 1, 2, 3, 4, 5, 6, 7), (2, 4)),
  "columns": ((0, 4, 1, 5, 2, 6, 3, 7), (2, 4)),
  "anyhow": ((5, 2, 7, 0, 3, 6, 1, 4), (4, 2)),
}


@pytest.mark.parametrize("blocks", [8, 24])
@pytest.mark.parametrize("name", MESHES)
def test_a_batch_arrives_in_order_whatever_way_the_mesh_winds(name, blocks):
  mesh = make_mesh(*MESHES[name])
  positions = sharding.local_positions(mesh, blocks)
  assert positions == list(range(blocks))  # one process holds all
  local = {
    "crops": np.arange(blocks * 6, dtype=np.int32).reshape(
      blocks * 2, 3
    ),  # two rows per block
    "indices": np.arange(blocks * 5, dtype=np.int32).reshape(blocks, 5),
  }
  placed = sharding.put_batch(mesh, local, positions, blocks)
  for key, array in local.items():
    np.testing.assert_array_equal(placed[key], array)
    assert placed[key].dtype == array.dtype
    assert placed[key].sharding == sharding.batch_sharding(mesh)
    rows = len(array) // 8
    for shard in placed[key].addressable_shards:
      place = list(mesh.devices.flat).index(shard.device)
      np.testing.assert_array_equal(
        shard.data, array[place * rows : (place + 1) * rows]
      )


def test_a_batch_may_come_with_its_parts_in_another_order():
  mesh = make_mesh(*MESHES["anyhow"])
  positions = [3, 1, 0, 2, 7, 6, 5, 4]
  whole = np.arange(16, dtype=np.int32).reshape(16, 1)
  local = whole.reshape(8, 2)[positions].reshape(16, 1)
  placed = sharding.put_batch(mesh, {"x": local}, positions, 8)
  np.testing.assert_array_equal(placed["x"], whole)


def test_constrain_batch_pins_the_leading_axis_under_a_mesh_alone():
  x = np.ones((16, 3), np.float32)
  assert sharding.constrain_batch(x) is x
  mesh = sharding.make_mesh(data=2, fsdp=4)
  with jax.set_mesh(mesh):
    pinned = jax.jit(sharding.constrain_batch)(x)
  assert pinned.sharding.is_equivalent_to(sharding.batch_sharding(mesh), ndim=2)
