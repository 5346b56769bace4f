"""Steps of real recipes cost on the device what they cost on a CPU in float32."""

import pathlib
import sys

import jax
import numpy as np
import pytest

from dinojax import assembly, sharding
from experiments import quickstart, vits14

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "bench"))
import workload

KEY = 1


def small(config):
  """The recipe with a batch that a CPU can take, and fewer prototypes."""
  with config.unlocked():
    config.group_size = 2
    config.data.batch_size = 4
    config.augment.num_local = 2
    config.heads.dino.prototypes = min(config.heads.dino.prototypes, 1024)
    config.heads.dino.hidden = min(config.heads.dino.hidden, 512)
    if "ibot" in config.heads:
      config.heads.ibot.update(hidden=512, prototypes=1024)
  return config


def three_steps(config, device, first):
  """Scalars of three steps from a state of NumPy arrays."""
  mesh = sharding.make_mesh(data=1, fsdp=1, devices=[device])
  groups = config.data.batch_size // config.group_size
  positions = sharding.local_positions(mesh, groups)
  batch = workload.random_batch(config, np.random.default_rng(0))
  history = []
  with jax.set_mesh(mesh):
    run = assembly.assemble(config, mesh)
    state = jax.tree.map(
      lambda x, like: jax.device_put(x, like.sharding), first, run.abstract_state
    )
    batch = sharding.put_batch(mesh, batch, positions, groups)
    for _ in range(3):
      state, scalars = run.train_step(state, batch, jax.random.key(KEY))
      history.append(jax.device_get(scalars))
  return history


@pytest.mark.parametrize("recipe", [quickstart, vits14], ids=lambda x: x.__name__)
def test_three_steps_are_those_of_a_cpu_within_bfloat16(device, cpu, recipe):
  config, reference = small(recipe.get_config()), small(recipe.get_config())
  with reference.unlocked():
    reference.backbone.dtype = "float32"
    reference.attention = "xla"
  mesh = sharding.make_mesh(data=1, fsdp=1, devices=[cpu])
  with jax.set_mesh(mesh):
    first = jax.device_get(assembly.assemble(reference, mesh).init(jax.random.key(0)))
  found, wanted = three_steps(config, device, first), three_steps(reference, cpu, first)
  for a, b in zip(found, wanted, strict=True):
    assert set(a) == set(b)
    for name, value in b.items():
      tolerance = 0.05 if name.startswith("grad_norm") else 0.01
      np.testing.assert_allclose(a[name], value, tolerance, 1e-3, err_msg=name)
