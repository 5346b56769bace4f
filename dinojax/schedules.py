"""Schedules: functions of the step. A step is one optimiser update, counted from 0."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax


class Schedules(NamedTuple):
  """Each a function from [] int32 step to [] float32."""

  learning_rate: Callable
  weight_decay: Callable
  teacher_momentum: Callable
  teacher_temp: Callable


def cosine(*, start: float, final: float, total_steps: int) -> Callable:
  """Half a cosine from `start` at step 0 to `final` at `total_steps` and after."""

  def schedule(step):
    done = jnp.clip(step / total_steps, 0, 1)
    return final + (start - final) * (1 + jnp.cos(jnp.pi * done)) / 2

  return schedule


def describe_change(before: Schedules, after: Schedules, *, step: int) -> str:
  """One line: the values at a step that differ between two sets of schedules."""
  pairs = zip(before._fields, before, after, strict=True)
  values = [(name, float(old(step)), float(new(step))) for name, old, new in pairs]
  changes = [
    f"{name} {old:.3g} -> {new:.3g}" for name, old, new in values if old != new
  ]
  return f"at step {step}: {', '.join(changes) or 'no schedule changes'}"


def make_schedules(
  *,
  learning_rate: dict,
  weight_decay: dict,
  teacher_momentum: dict,
  teacher_temp: dict,
  total_steps: int,
) -> Schedules:
  """Builds the four schedules from `config.schedules`.

  Args:
    learning_rate: peak, final, warmup_steps: linear from 0, then half a cosine.
      DIFFERS: step i of a warm-up of W steps has i/W of the peak, so that W = 0 and 1
      mean something; the reference divides by W - 1, and reaches the peak a step
      earlier. So for `teacher_temp`.
    weight_decay: start, final: half a cosine.
    teacher_momentum: start, final: half a cosine.
    teacher_temp: start, final, warmup_steps: linear, then constant.
    total_steps: length of the run.
  """

  def warmup_cosine(*, peak, final, warmup_steps):
    return optax.warmup_cosine_decay_schedule(
      0.0, peak, warmup_steps, decay_steps=total_steps, end_value=final
    )

  def linear(*, start, final, warmup_steps):
    if warmup_steps == 0:  # optax would stay at `start`
      return optax.constant_schedule(final)
    return optax.linear_schedule(start, final, warmup_steps)

  return Schedules(
    learning_rate=warmup_cosine(**learning_rate),
    weight_decay=cosine(**weight_decay, total_steps=total_steps),
    teacher_momentum=cosine(**teacher_momentum, total_steps=total_steps),
    teacher_temp=linear(**teacher_temp),
  )
