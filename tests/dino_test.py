"""The method, beside float64 NumPy over explicit pairs, and what must never change."""

import functools
import types

import dino_oracle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from dinojax import assembly, dino, schedules

KEY = jax.random.key(7)
STEP, LEARNING_RATE = 7, 0.1
TEMP = 0.04 + (0.07 - 0.04) * STEP / 37_500


@functools.cache
def setup(*, targets="sinkhorn", shared=False, pool="gap"):
  """Config, networks and jitted functions, with a state as in the middle of a run."""
  config = tiny.config()
  with config.unlocked():
    config.losses.targets = targets
    config.backbone.update(pool=pool, drop_path=0.0)
    config.backbone.update(mean=dino_oracle.MEAN, std=dino_oracle.STD)
    if shared:
      del config.heads.ibot
      config.remat = "none"  # quicker to compile; the other kind has it
  nets, tx = assembly.make_nets(config), optax.sgd(LEARNING_RATE)
  init = functools.partial(dino.init_state, nets=nets, tx=tx, cfg=config)
  shapes = jax.eval_shape(init, KEY)
  state = dino.TrainState(
    step=np.int32(STEP),
    student=tiny.noise(shapes.student),
    teacher=tiny.noise(shapes.teacher, seed=1),
    opt_state=tx.init(shapes.student),
    centers=tiny.noise(shapes.centers),
  )
  plan = schedules.make_schedules(**config.schedules, total_steps=config.total_steps)
  step = functools.partial(
    dino.train_step, nets=nets, tx=tx, schedules=plan, cfg=config
  )

  def loss(student, targets, batch):
    groups = np.arange(config.data.batch_size // config.group_size)
    rates = {"local_weight": 1.0}
    it = dict(key=KEY, nets=nets, cfg=config, rates=rates, earlier=None)
    return dino.student_loss(student, targets, batch, groups, **it)[1]

  @jax.jit
  def targets_and_centers(teacher, batch, centers, temp):
    logits = dino.teacher_logits(teacher, batch, nets=nets)
    return dino.teacher_targets(logits, centers, temp)

  return types.SimpleNamespace(
    shapes=shapes,
    config=config,
    nets=nets,
    state=state,
    batch=tiny.batch(config),
    step=jax.jit(step, donate_argnums=0),  # copies host arrays, such as `state`
    losses=jax.jit(loss),
    targets=lambda *arguments: jax.device_get(targets_and_centers(*arguments)),
  )


def losses_by_hand(it):
  return dino_oracle.losses(
    nets=it.nets, state=it.state, batch=it.batch, config=it.config, temp=TEMP
  )


OTHER = dict(targets="centering", shared=True, pool="cls")


def with_changed(crops, index):
  changed = crops.copy()
  changed[:, index] = 255 - changed[:, index]
  return changed


def close(found, wanted, rtol=1e-5, atol=1e-6):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, wanted
  )


def test_losses_equal_float64_sums_over_explicit_pairs_crops_and_neighbours():
  # Of the other kind, whose step is not compiled; that of the usual one follows.
  it = setup(**OTHER)
  targets, _ = it.targets(it.state.teacher, it.batch, it.state.centers, TEMP)
  found, wanted = it.losses(it.state.student, targets, it.batch), losses_by_hand(it)
  for name, value in found.items():
    np.testing.assert_allclose(value, wanted[name], rtol=2e-5, err_msg=name)


def test_a_step_reports_the_losses_of_the_state_before_it():
  it = setup()
  _, metrics = it.step(it.state, it.batch, KEY)
  for name, value in losses_by_hand(it).items():
    np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)
  np.testing.assert_allclose(metrics["teacher_temp"], TEMP, rtol=1e-6)


def test_a_step_moves_the_student_down_the_gradient_of_the_loss():
  # The reported loss sees the student at fixed targets: its slope is the gradient's.
  it = setup()
  after, metrics = jax.device_get(it.step(it.state, it.batch, KEY))
  grads = jax.tree.map(
    lambda a, b: (a - b) / LEARNING_RATE, it.state.student, after.student
  )
  for network, tree in grads.items():
    norm = float(np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(tree))))
    np.testing.assert_allclose(metrics[f"grad_norm_{network}"], norm, rtol=1e-3)
    loss = []
    for h in (2e-3, -2e-3):
      moved = jax.tree.map(
        lambda p, g, h=h, n=norm: p + h * g / n, it.state.student[network], tree
      )
      state = it.state.replace(student={**it.state.student, network: moved})
      loss.append(float(it.step(state, it.batch, KEY)[1]["loss"]))
    np.testing.assert_allclose((loss[0] - loss[1]) / 4e-3, norm, rtol=0.05)


def test_a_step_moves_the_teacher_by_the_moving_average_and_nothing_else():
  it = setup()
  after, _ = jax.device_get(it.step(it.state, it.batch, KEY))
  momentum = 1 + (0.9 - 1) * (1 + np.cos(np.pi * STEP / 100)) / 2
  by_hand = jax.tree.map(
    lambda old, new: momentum * np.float64(old) + (1 - momentum) * np.float64(new),
    it.state.teacher,
    after.student,
  )
  close(after.teacher, by_hand)
  assert after.step == STEP + 1


def test_no_gradient_reaches_the_teacher():
  # At the last step the momentum is 1: the student still moves, the teacher must not.
  it = setup()
  last = it.state.replace(step=np.int32(100))
  after, _ = jax.device_get(it.step(last, it.batch, KEY))
  jax.tree.map(np.testing.assert_array_equal, after.teacher, it.state.teacher)
  for network, tree in after.student.items():
    moved = jax.tree.map(lambda a, b: (a != b).any(), tree, it.state.student[network])
    assert all(jax.tree.leaves(moved)), moved


def test_targets_come_from_the_teacher_alone():
  it = setup()
  other = it.state.replace(student=it.state.teacher)
  entropies = [
    it.step(s, it.batch, KEY)[1]["teacher_entropy"] for s in (it.state, other)
  ]
  assert entropies[0] == entropies[1]


def test_the_teacher_sees_global_crops_whole_and_no_local_ones():
  it = setup(**OTHER)
  other = {**it.batch, "local_crops": 255 - it.batch["local_crops"]}
  other["mask"] = ~it.batch["mask"]
  args = it.state.centers, TEMP
  wanted, _ = it.targets(it.state.teacher, it.batch, *args)
  found, _ = it.targets(it.state.teacher, other, *args)
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("view", [0, 1])
def test_a_crop_is_never_its_own_target(view):
  # Only the teacher's `view` sets targets: that crop of the student must not matter.
  it = setup(**OTHER)
  targets, _ = it.targets(it.state.teacher, it.batch, it.state.centers, TEMP)
  targets["dino"] = targets["dino"].copy()
  targets["dino"][:, 1 - view] = 0

  def loss(name, index):
    batch = {**it.batch, name: with_changed(it.batch[name], index)}
    return it.losses(it.state.student, targets, batch)["loss_dino"]

  before = float(it.losses(it.state.student, targets, it.batch)["loss_dino"])
  assert loss("global_crops", view) == pytest.approx(before, rel=1e-6)
  assert loss("global_crops", 1 - view) != pytest.approx(before, rel=1e-4)
  assert loss("local_crops", 7) != pytest.approx(before, rel=1e-4)


def test_permuting_the_images_of_a_batch_permutes_their_targets():
  it = setup(**OTHER)
  order = np.random.default_rng(0).permutation(len(it.batch["mask"]))
  args = it.state.centers, TEMP
  wanted, _ = it.targets(it.state.teacher, it.batch, *args)
  crops = {**it.batch, "global_crops": it.batch["global_crops"][order]}
  found, _ = it.targets(it.state.teacher, crops, *args)
  close(found["dino"], wanted["dino"][order], 1e-4)
  # Hidden patches belong to groups; these move as a whole.
  groups, g = np.array([2, 0, 3, 1]), it.config.group_size
  order = (groups[:, None] * g + np.arange(g)).ravel()
  moved = {
    "global_crops": it.batch["global_crops"][order],
    "mask": it.batch["mask"][order],
    "masked_indices": it.batch["masked_indices"][groups],
  }
  found, _ = it.targets(it.state.teacher, {**it.batch, **moved}, *args)
  close(found["dino"], wanted["dino"][order], 1e-4)
  close(found["ibot"], wanted["ibot"][groups], 1e-4)


def test_without_drop_path_nothing_is_random():
  it = setup()
  one, other = (it.step(it.state, it.batch, jax.random.key(k)) for k in (1, 2))
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_centers_follow_the_mean_logits_and_targets_use_those_before():
  # torch_step_test.py has them from step to step.
  it = setup(**OTHER)
  crops, mask = it.batch["global_crops"], it.batch["mask"]
  teacher = dino_oracle.Seen(
    it.nets, it.state.teacher, crops, np.zeros_like(mask), "cls"
  )
  rows = {
    "dino": teacher.logits.reshape(-1, 48),
    "ibot": teacher.patch_logits[mask],
  }
  old = it.state.centers
  by_hand = {k: 0.9 * old[k] + 0.1 * rows[k].mean(0) for k in rows}
  targets, centers = it.targets(it.state.teacher, it.batch, old, TEMP)
  close(centers, by_hand)
  wanted = dino_oracle.softmax((rows["dino"] - old["dino"]) / TEMP)
  close(targets["dino"].reshape(wanted.shape), wanted)


def test_a_donated_state_is_used_up_and_one_compilation_serves_all_steps():
  it = setup()
  before = jax.tree.map(jnp.array, it.state)
  state, _ = it.step(before, it.batch, KEY)
  for leaf in jax.tree.leaves((before.student, before.teacher)):
    assert leaf.is_deleted()
  compiled = it.step._cache_size()
  for _ in range(2):
    state, metrics = it.step(state, it.batch, KEY)
  assert it.step._cache_size() == compiled
  assert state.step == STEP + 3 and np.isfinite(metrics["loss"])


def test_both_losses_have_a_head_each_or_share_one_and_centering_has_centers():
  usual, other = setup().shapes, setup(**OTHER).shapes
  assert set(usual.student) == {"backbone", "dino_head", "ibot_head"}
  assert set(other.student) == {"backbone", "dino_head"}
  assert (set(usual.centers), set(other.centers)) == (set(), {"dino", "ibot"})
