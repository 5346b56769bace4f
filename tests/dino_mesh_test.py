"""The same training on every mesh: 1 device, 8 in each arrangement, and 128."""

import functools
import subprocess
import sys

import children
import collectives
import jax
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import AxisType, Mesh

from dinojax import assembly, dino, schedules, sharding

STEPS = 2


CONFIG = tiny.config()
with CONFIG.unlocked():
  CONFIG.data.batch_size = 16  # 8 groups of 2
  CONFIG.remat = "none"  # quicker to compile
  CONFIG.augment.num_local = 2
  CONFIG.backbone.update(drop_path=0.5, positions="rope", rope_rescale=2.0, registers=1)
  CONFIG.gram.update(teacher="the first one", refresh_steps=(1,), crop_size=112)
  CONFIG.schedules.gram_weight.update(start=2.0, final=2.0)
  CONFIG.heads.dino.prototypes = CONFIG.heads.ibot.prototypes = 64
# At 0.1 the largest step is 1.5, and its 24 bits alone come near the 1e-5 asked for.
NETS, TX = assembly.make_nets(CONFIG), optax.sgd(0.01, momentum=0.9)


def init(key):
  return dino.init_state(key, nets=NETS, tx=TX, cfg=CONFIG)


@functools.cache
def first_state():
  # No fresh one. Its heads map to tiny vectors: gradients pass 1000, and so do their
  # roundings. Its mask token is zeros, which come to the head as such where drop path
  # drops both blocks, and their direction has no slope.
  shapes = jax.eval_shape(init, jax.random.key(0))
  student, teacher = tiny.noise(shapes.student), tiny.noise(shapes.teacher, seed=1)
  own = dict(student=student, teacher=teacher, gram_teacher=teacher["backbone"])
  return tiny.zeros(shapes).replace(**own)


def compiled_step(mesh, config=CONFIG):
  """A step of SGD on a mesh."""
  plan = schedules.make_schedules(**config.schedules, total_steps=config.total_steps)
  step = functools.partial(
    dino.train_step, nets=NETS, tx=TX, schedules=plan, cfg=config
  )
  where = sharding.state_sharding(mesh, first_state())
  replicated = sharding.replicated(mesh)
  return jax.jit(
    step,
    in_shardings=(where, sharding.batch_sharding(mesh), replicated),
    out_shardings=(where, replicated),
    donate_argnums=0,
  )


def train(mesh, config=CONFIG, *, step=None, number=0, key=1, steps=STEPS):
  """Steps from a number on: all scalars of each, and the state after."""
  step = step or compiled_step(mesh, config)
  groups = config.data.batch_size // config.group_size
  positions = sharding.local_positions(mesh, groups)
  history = []
  with jax.set_mesh(mesh):
    state = first_state().replace(step=np.int32(number))
    state = jax.device_put(state, sharding.state_sharding(mesh, state))
    for seed in range(steps):
      mine = {
        name: np.concatenate([np.split(x, groups)[i] for i in positions])
        for name, x in tiny.batch(config, seed).items()
      }
      batch = sharding.put_batch(mesh, mine, positions, groups)
      state, scalars = step(state, batch, jax.random.key(key))
      history.append(jax.device_get(scalars))
  return history, state


def one_device_mesh():
  devices = np.array(jax.devices()[:1]).reshape(1, 1)
  return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 2)


@pytest.fixture(scope="module")
def train_alone():
  mesh = one_device_mesh()
  return functools.partial(train, mesh, step=compiled_step(mesh))


@pytest.fixture(scope="module")
def alone(train_alone):
  history, state = train_alone()
  return history, jax.device_get(state)


def test_equal_key_and_step_give_equal_bits_and_the_next_step_other_draws(train_alone):
  def one_step(key, number=0):
    return jax.device_get(train_alone(number=number, key=key, steps=1))

  first, again = one_step(7), one_step(7)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  # KoLeo sees the student alone: no schedule moves it, only what was drawn for it.
  runs = first, one_step(7, number=1), one_step(8)
  spread = {float(history[0]["loss_koleo"]) for history, _ in runs}
  assert len(spread) == 3


def close(found, wanted):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, wanted
  )


# In multiprocess_test.py shards alone, without data parallelism.
@pytest.mark.parametrize(
  "data, fsdp", [pytest.param(8, 1, marks=pytest.mark.long), (2, 4)]
)
def test_eight_devices_train_as_one_does(monkeypatch, alone, data, fsdp):
  monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 2**9)
  with collectives.compiled() as programs:
    history, state = train(sharding.make_mesh(data=data, fsdp=fsdp))
    texts = programs()
  assert texts and not any(map(collectives.racing, texts))
  for tree in (state.student, state.teacher, state.opt_state, state.gram_teacher):
    whole = [x.size for x in jax.tree.leaves(tree)]
    shares = [x.addressable_shards[0].data.size for x in jax.tree.leaves(tree)]
    assert sum(shares) == pytest.approx(sum(whole) / fsdp, rel=0.3)
  for found, wanted in zip(history, alone[0], strict=True):
    for name, value in wanted.items():
      np.testing.assert_allclose(found[name], value, 1e-5, 1e-5, err_msg=name)
  close(jax.device_get(state.student), alone[1].student)
  close(jax.device_get(state.teacher), alone[1].teacher)
  close(jax.device_get(state.gram_teacher), alone[1].gram_teacher)
  assert all(scalars["loss_gram"] > 1e-3 for scalars in history)


def test_weights_born_on_eight_devices_are_those_of_one_and_both_networks_are_equal(
  monkeypatch,
):
  monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 2**9)
  mesh = sharding.make_mesh(data=2, fsdp=4)
  where = sharding.state_sharding(mesh, first_state())
  with jax.set_mesh(mesh):
    born = jax.jit(init, out_shardings=where)(jax.random.key(0))
  assert not born.student["dino_head"]["prototypes"]["v"].is_fully_replicated
  alone = jax.device_get(jax.jit(init)(jax.random.key(0)))
  close(jax.device_get(born), alone)
  jax.tree.map(np.testing.assert_array_equal, alone.teacher, alone.student)
  earlier = alone.gram_teacher
  jax.tree.map(np.testing.assert_array_equal, earlier, alone.teacher["backbone"])
  assert alone.step == 0


REFERENCE_RECIPE = """
import jax
import numpy as np

from dinojax import assembly, preflight, sharding
from dinojax.data import masking
from experiments import vitg14

config = vitg14.get_config()
with config.unlocked():
  config.backbone.update(width=128, depth=1, heads=2, pos_grid=4)
  for head in config.heads.values():
    head.update(hidden=64, bottleneck=32, prototypes=4096)
  config.augment.update(num_local=2)
  config.augment.global1.size = config.augment.global2.size = 56
  config.augment.local.size = 28
  config.group_size = 2
  config.data.batch_size = 256
preflight.check(config, devices=jax.device_count())
mesh = sharding.make_mesh(**config.mesh)
run = assembly.assemble(config, mesh)
rng = np.random.default_rng(0)
groups = [
  masking.block_masks(rng, group_size=2, views=2, grid=4, **config.masking)
  for _ in range(128)
]
batch = {
  "global_crops": rng.integers(256, size=(256, 2, 56, 56, 3), dtype=np.uint8),
  "local_crops": rng.integers(256, size=(256, 2, 28, 28, 3), dtype=np.uint8),
  "mask": np.concatenate([group["mask"] for group in groups]),
  "masked_indices": np.stack([group["masked_indices"] for group in groups]),
  "masked_weights": np.stack([group["masked_weights"] for group in groups]),
}
with jax.set_mesh(mesh):
  state = run.init(jax.random.key(0))
  prototypes = state.student["dino_head"]["prototypes"]["v"]
  assert prototypes.addressable_shards[0].data.shape == (32, 256), prototypes.sharding
  for _ in range(2):
    placed = sharding.put_batch(mesh, batch, range(128), 128)
    state, scalars = run.train_step(state, placed, jax.random.key(1))
  assert all(np.isfinite(value) for value in scalars.values()), scalars
  print("devices", mesh.size, "step", int(state.step), "loss", float(scalars["loss"]))
"""


# experiments_test.py lays it out for 128 devices; eight take real steps above.
@pytest.mark.long
def test_the_reference_recipe_takes_real_steps_on_128_devices():
  result = subprocess.run(
    [sys.executable, "-c", REFERENCE_RECIPE],
    env=children.environment(128),
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr[-4000:]
  assert "devices 128 step 2 loss" in result.stdout
