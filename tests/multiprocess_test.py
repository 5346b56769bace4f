"""The same training in several processes: real ones, that talk over loopback."""

import collectives
import jax
import jax.numpy as jnp
import pytest
import together
from jax.sharding import PartitionSpec

from dinojax import sharding


# main_test.py has two processes that shard, and compares their losses with those of
# one; in dino_mesh_test.py all weights are compared, and no collectives race.
@pytest.mark.process
@pytest.mark.long
def test_two_processes_train_as_one_device_does_and_not_by_luck(tmp_path):
  # bench/layouts.py has 2, 3 and 4 processes, and all meshes.
  together.check(tmp_path / "result", count=2, devices=1, data=1)


@pytest.mark.parametrize("after", [False, True])
def test_a_sum_beside_a_loop_of_sums_is_found_unless_it_needs_the_loop(after):
  mesh = sharding.make_mesh(data=1, fsdp=-1)

  def sums(x):
    def body(total, row):
      return total + jax.lax.psum(row * total, sharding.AXES), None

    total, _ = jax.lax.scan(body, jnp.ones(x.shape[1:]), x)
    return total, jax.lax.psum(x[0] * (total if after else 1), sharding.AXES)

  spec = PartitionSpec(None, sharding.AXES)
  x = jax.ShapeDtypeStruct((5, 64), jnp.float32)
  step = jax.shard_map(sums, mesh=mesh, in_specs=spec, out_specs=PartitionSpec())
  found = collectives.racing(jax.jit(step).lower(x).compile().as_text())
  assert len(found) == (0 if after else 1)
