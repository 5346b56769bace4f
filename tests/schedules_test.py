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
