"""Gradient accumulation trains as the undivided batch does, in less memory."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dinojax import accumulate, assembly, dino, schedules, sharding

LEARNING_RATE = 0.01  # as in dino_mesh_test.py, and for its reason
KINDS = [
  dict(targets="sinkhorn", shared=False, pool="gap"),
  dict(targets="centering", shared=True, pool="cls"),
]
# Kind, mesh and microbatches; each is a program of its own to compile.
CASES = [(0, (1, 1), 2), (1, (2, 4), 2)]
RESHARDING = re.compile(r" (all-to-all|collective-permute)(?:-start)?\(")
CROPS_MOVE = r"= [^=]*u8\[[^=]* (all-|collective-)"
COLLECTIVE = re.compile(r" ((?:all|reduce|collective)-[a-z-]+?)(?:-start)?\(")


def get_config(microbatches, images, *, targets, shared, pool):
  config = tiny.config()
  with config.unlocked():
    config.accumulation = microbatches
    config.remat = "none"  # quicker to compile
    config.data.batch_size = images
    config.augment.num_local = 2
    config.backbone.update(pool=pool, drop_path=0.5, depth=1)
    config.heads.dino.prototypes = config.heads.ibot.prototypes = 64
    config.losses.targets = targets
    if shared:
      del config.heads.ibot
  return config


def make_mesh(data, fsdp):
  devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
  return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 2)


def make_step(config):
  """A step of SGD, to be compiled, and a state as in the middle of a run."""
  nets, tx = assembly.make_nets(config), optax.sgd(LEARNING_RATE)
  plan = schedules.make_schedules(**config.schedules, total_steps=config.total_steps)
  train_step = functools.partial(
    dino.train_step, nets=nets, tx=tx, schedules=plan, cfg=config
  )
  init = functools.partial(dino.init_state, nets=nets, tx=tx, cfg=config)
  shapes = jax.eval_shape(init, jax.random.key(0))
  state = dino.TrainState(
    step=np.int32(50),
    student=tiny.noise(shapes.student),
    teacher=tiny.noise(shapes.teacher, seed=1),
    opt_state=tx.init(shapes.student),
    centers=tiny.noise(shapes.centers),
  )
  return train_step, state


def losses_and_centers(kind, microbatches):
  """Of a step, what needs no backward pass, which the compiler leaves out."""
  config = get_config(microbatches, 8, **KINDS[kind])
  step, state = make_step(config)

  @jax.jit
  def part(*arguments):
    state, scalars = step(*arguments)
    names = "loss_dino", "loss_ibot", "loss_koleo", "teacher_entropy"
    return {name: scalars[name] for name in names}, state.centers

  return jax.device_get(part(state, tiny.batch(config), jax.random.key(1)))


@functools.cache
def step(kind, mesh_shape, microbatches, images=64):
  """One SGD step: the compiled step, its scalars, and the state after.

  64 images are 32 groups of 2, two for each of 8 devices and 2 microbatches.
  """
  config, mesh = get_config(microbatches, images, **KINDS[kind]), make_mesh(*mesh_shape)
  train_step, state = make_step(config)
  groups = config.data.batch_size // config.group_size
  with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh):
    patch.setattr(sharding, "SMALLEST_SHARDED", 2**9)
    where = sharding.state_sharding(mesh, state)
    state = jax.device_put(state, where)
    batch = sharding.put_batch(mesh, tiny.batch(config), range(groups), groups)
    lowered = jax.jit(
      train_step, out_shardings=(where, sharding.replicated(mesh))
    ).lower(state, batch, jax.random.key(1))
    compiled = lowered.compile()
    after, scalars = compiled(state, batch, jax.random.key(1))
  return compiled, jax.device_get(scalars), jax.device_get(after)


# Losses and centers are below; updates, with drop path and on eight devices, in
# distill_test.py.
@pytest.mark.long
@pytest.mark.parametrize("kind, mesh_shape, microbatches", CASES, ids=str)
def test_a_step_of_microbatches_is_the_undivided_step(kind, mesh_shape, microbatches):
  _, wanted_scalars, wanted = step(kind, (1, 1), 1)
  _, scalars, state = step(kind, mesh_shape, microbatches)
  for name, value in wanted_scalars.items():
    np.testing.assert_allclose(scalars[name], value, 1e-5, 1e-5, err_msg=name)
  for name in ("student", "teacher", "centers"):
    found, tree = getattr(state, name), getattr(wanted, name)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, tree
    )
  assert state.step == wanted.step == 51
  assert set(state.centers) == ({"dino", "ibot"} if kind else set())


def gradient_of_a_layer(microbatches):
  """The program of a mean gradient on (2, 4) devices, of 16 groups a microbatch."""
  mesh, groups = make_mesh(2, 4), 16 * microbatches
  where = sharding.batch_sharding(mesh)
  crops = jax.ShapeDtypeStruct((2 * groups, 64), np.uint8, sharding=where)
  split = NamedSharding(mesh, PartitionSpec("fsdp"))
  weights = jax.ShapeDtypeStruct((64, 256), np.float32, sharding=split)

  def loss(weights, crops):
    return jnp.square(crops.astype("float32") @ weights).mean()

  def mean(weights, crops):
    return accumulate.mean(
      lambda crops: jax.grad(loss)(weights, crops),
      crops,
      groups=groups,
      microbatches=microbatches,
    )

  with jax.set_mesh(mesh):
    return jax.jit(mean, out_shardings=split).lower(weights, crops).compile().as_text()


def test_a_microbatch_moves_no_more_between_devices_than_a_batch_of_its_size():
  divided, alone = (gradient_of_a_layer(n) for n in (2, 1))
  moves = [collections.Counter(COLLECTIVE.findall(text)) for text in (divided, alone)]
  assert moves[0] <= moves[1] + moves[1]  # each microbatch is unrolled on CPU
  assert set(moves[0]) == {"all-gather", "all-reduce"}  # of weights, of gradients
  assert not re.search(CROPS_MOVE, divided)


@pytest.mark.long
def test_a_microbatch_of_a_step_moves_what_a_batch_of_its_size_does_and_no_crop():
  # At sizes as small as these the compiler moves activations, not weights.
  divided = step(1, (2, 4), 2)[0].as_text()
  alone = step(1, (2, 4), 1, images=32)[0].as_text()
  moves = [sorted(RESHARDING.findall(text)) for text in (divided, alone)]
  assert moves[0] == sorted(2 * moves[1]) != []  # each microbatch is unrolled on CPU
  assert not re.search(CROPS_MOVE, divided)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_step_of_microbatches_has_losses_and_centers_of_the_undivided_batch(kind):
  whole, divided = (losses_and_centers(kind, n) for n in (1, 2))
  assert set(whole[1]) == ({"dino", "ibot"} if kind else set())
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, divided, whole)


def layer_memory(microbatches):
  """Bytes that the gradient of two layers needs beside what it is given."""

  def loss(weights, x):
    return jnp.square(jnp.tanh(x @ weights) @ weights.T).mean()

  def mean(weights, x):
    grads = functools.partial(jax.grad(loss), weights)
    return accumulate.mean(grads, x, groups=64, microbatches=microbatches)

  shapes = [
    jax.ShapeDtypeStruct(shape, np.float32) for shape in ((32, 512), (4096, 32))
  ]
  compiled = jax.jit(mean).lower(*shapes).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_two_microbatches_of_two_layers_need_less_memory():
  assert layer_memory(2) < 0.65 * layer_memory(1)


@pytest.mark.long  # of layers, above
def test_two_microbatches_need_less_memory():
  whole, divided = (
    step(0, (1, 1), n)[0].memory_analysis().temp_size_in_bytes for n in (1, 2)
  )
  assert divided < 0.65 * whole


def test_collected_rows_stay_in_order_and_on_their_devices():
  mesh = make_mesh(2, 4)
  batch = {"a": np.arange(96.0).reshape(96, 1), "b": np.arange(64.0).reshape(32, 2)}
  whole = functools.partial(
    accumulate.collect, lambda x: (x["a"] * 2, x["b"][:, :1]), groups=32, microbatches=4
  )
  with jax.set_mesh(mesh):
    placed = jax.device_put(batch, sharding.batch_sharding(mesh))
    compiled = jax.jit(whole).lower(placed).compile()
    a, b = compiled(placed)
  np.testing.assert_array_equal(a, batch["a"] * 2)
  np.testing.assert_array_equal(b, batch["b"][:, :1])
  assert not re.search("all-|collective-", compiled.as_text())
  for x in (a, b):
    assert x.sharding.is_equivalent_to(sharding.batch_sharding(mesh), ndim=2)


def test_the_mean_is_of_the_microbatches_and_sums_bfloat16_in_float32():
  # Microbatches of 256, 1, 1 and 1, where bfloat16 would lose every 1.
  x = jnp.array([256, 1, 1, 1] * 2, jnp.bfloat16)
  seen = accumulate.mean(lambda x: {"mean": x.mean()}, x, groups=8, microbatches=4)
  assert seen["mean"].dtype == jnp.float32
  assert seen["mean"] == 259 / 4


def test_an_undivided_batch_goes_through_as_it_is():
  batch = {"x": np.ones(3)}
  for function in (accumulate.collect, accumulate.mean):
    assert function(lambda x: x, batch, groups=3, microbatches=1) is batch
