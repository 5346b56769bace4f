"""Schedules of the two ViT-g recipes, beside their formulas in plain Python."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax import schedules
from experiments import vitg14, vitg14_dinov2

# Written out from the recipes' tables, not read from the configs.
RECIPES = {
  "vitg14": dict(
    config=vitg14.get_config(),
    peak=1e-4,
    warmup=10 * 69_335,
    total=80 * 69_335,
  ),
  "vitg14_dinov2": dict(
    config=vitg14_dinov2.get_config(),
    peak=2e-4 * math.sqrt(3072 / 1024),
    warmup=100_000,
    total=625_000,
  ),
}


def half_cosine(start, final, done):
  return final + (start - final) * (1 + math.cos(math.pi * done)) / 2


def learning_rate(step, *, peak, warmup, total):
  if step < warmup:
    return peak * step / warmup
  return half_cosine(peak, 1e-6, (step - warmup) / (total - warmup))


def teacher_temp(step):
  return 0.04 + (0.07 - 0.04) * min(step / 37_500, 1)


def steps_of(recipe):
  warmup, total = recipe["warmup"], recipe["total"]
  middle = (warmup + total) // 2
  return [0, 1, 20_000, 37_500, warmup // 2, warmup, middle, total - 1, total]


def build(config):
  return schedules.make_schedules(**config.schedules, total_steps=config.total_steps)


@pytest.mark.parametrize("name", RECIPES)
def test_every_schedule_follows_its_formula_from_first_to_last_step(name):
  recipe = RECIPES[name]
  made = build(recipe["config"])
  peak, warmup, total = recipe["peak"], recipe["warmup"], recipe["total"]
  for step in steps_of(recipe):
    wanted = (
      learning_rate(step, peak=peak, warmup=warmup, total=total),
      half_cosine(0.04, 0.2, step / total),
      half_cosine(0.994, 1.0, step / total),
      teacher_temp(step),
      1.0,
      0.0,
    )
    found = [schedule(jnp.int32(step)) for schedule in made]
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-9, err_msg=str(step))


def test_schedules_stay_at_their_end_after_the_last_step():
  made = build(RECIPES["vitg14_dinov2"]["config"])
  for schedule in made:
    assert schedule(jnp.int32(625_000)) == schedule(jnp.int32(700_000))


def test_schedules_without_warmup_start_at_the_warmed_up_value():
  config = vitg14.get_config()
  config.schedules.learning_rate.warmup_steps = 0
  config.schedules.teacher_temp.warmup_steps = 0
  made = build(config)
  np.testing.assert_allclose(made.learning_rate(jnp.int32(0)), 1e-4, rtol=1e-6)
  np.testing.assert_allclose(made.teacher_temp(jnp.int32(0)), 0.07, rtol=1e-6)


def test_a_warm_up_by_half_a_cosine_follows_its_formula_and_then_the_old_decay():
  config = vitg14.get_config()
  config.total_steps = 1_000
  config.schedules.learning_rate.update(peak=3e-4, warmup_steps=400, warmup="cosine")
  made = build(config).learning_rate
  for step in (0, 1, 100, 200, 399, 400, 401, 700, 1_000, 1_200):
    if step < 400:
      wanted = half_cosine(0, 3e-4, step / 400)
    else:
      wanted = half_cosine(3e-4, 1e-6, min(step - 400, 600) / 600)
    found = made(jnp.int32(step))
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-10, err_msg=str(step))


@pytest.mark.parametrize("warmup", ["linear", "cosine"])
def test_a_rate_whose_final_value_is_its_peak_is_exactly_constant(warmup):
  config = vitg14.get_config()
  peak = 5e-5 * 4 * math.sqrt(4)
  rate = dict(peak=peak, final=peak, warmup_steps=100_000, warmup=warmup)
  config.schedules.learning_rate.update(rate)
  made = jax.jit(build(config).learning_rate)
  steps = (100_000, 100_001, 777_777, config.total_steps, config.total_steps + 1)
  assert {float(made(jnp.int32(step))) for step in steps} == {float(np.float32(peak))}
  assert made(jnp.int32(99_000)) < peak
  config.schedules.learning_rate.warmup_steps = 0
  assert build(config).learning_rate(jnp.int32(0)) == np.float32(peak)


def loss_weights(**fields):
  config = vitg14.get_config()
  config.schedules.gram_weight.update(fields)
  return build(config).gram_weight


@pytest.mark.parametrize("start, final", [(0.0, 2.0), (1.0, 0.5)])
def test_a_loss_weight_is_constant_then_half_a_cosine_then_constant(start, final):
  fields = dict(start=start, final=final, first_step=1_000_000, steps=1_000)
  made = jax.jit(loss_weights(**fields))
  # Exactly, so that a weight of 0 adds nothing.
  assert all(made(jnp.int32(step)) == start for step in (0, 1, 999_999, 1_000_000))
  assert all(made(jnp.int32(step)) == final for step in (1_001_000, 1_200_000))
  for step in (1_000_001, 1_000_250, 1_000_500, 1_000_999):
    wanted = half_cosine(start, final, (step - 1_000_000) / 1_000)
    found = made(jnp.int32(step))
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-7, err_msg=str(step))


def test_a_loss_weight_without_steps_jumps():
  made = jax.jit(loss_weights(start=0.5, final=1.5, first_step=3))
  found = [float(made(jnp.int32(step))) for step in range(5)]
  assert found == [0.5, 0.5, 0.5, 1.5, 1.5]


def test_the_default_weights_leave_the_losses_as_they_are():
  made = build(vitg14.get_config())
  for step in (0, 1, 10**6, 10**8):
    step = jnp.int32(step)
    assert (made.local_weight(step), made.gram_weight(step)) == (1.0, 0.0)


def test_schedules_are_traced_by_jit():
  made = build(RECIPES["vitg14"]["config"])
  for schedule in made:
    value = jax.jit(schedule)(jnp.int32(1_000_000))
    assert value.dtype == jnp.float32 and value.shape == ()
    np.testing.assert_allclose(value, schedule(jnp.int32(1_000_000)), rtol=1e-5)


def test_a_change_of_schedules_names_what_differs_at_a_step():
  config = vitg14.get_config()
  before = build(config)
  config.schedules.learning_rate.peak = 2e-4
  line = schedules.describe_change(before, build(config), step=693_350)
  assert line == "at step 693350: learning_rate 0.0001 -> 0.0002"
  assert schedules.describe_change(before, before, step=7) == (
    "at step 7: no schedule changes"
  )
