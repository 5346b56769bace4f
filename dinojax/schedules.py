"""Schedules: functions of the step. A step is one optimiser update, counted from 0."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Schedules(NamedTuple):
  """Each a function from [] int32 step to [] float32."""

  learning_rate: Callable
  weight_decay: Callable
  teacher_momentum: Callable
  teacher_temp: Callable
  local_weight: Callable
  gram_weight: Callable

  def at(self, step: jax.Array) -> dict[str, jax.Array]:
    """Their values at a step, by name."""
    return {name: value(step) for name, value in self._asdict().items()}


def cosine(*, start: float, final: float, steps: int, first_step: int = 0) -> Callable:
  """Half a cosine between two constants.

  Args:
    start: value until `first_step`.
    final: value from `first_step + steps` on.
    steps: length of the half cosine; 0: `final` follows `start` at once.
    first_step: where it starts.
  """

  def schedule(step):
    if steps == 0:
      return jnp.where(step < first_step, jnp.float32(start), jnp.float32(final))
    done = jnp.clip((step - first_step) / steps, 0, 1)
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
  local_weight: dict,
  gram_weight: dict,
  total_steps: int,
) -> Schedules:
  """Builds the schedules from `config.schedules`.

  Args:
    learning_rate: peak, final, warmup_steps, warmup: from 0 to the peak, "linear" or by
      half a "cosine", then half a cosine to `final`; exactly constant where that is the
      peak. DIFFERS: step i of a linear warm-up of W steps has i/W of the peak, so that
      W = 0 and 1 mean something; the reference divides by W - 1, and reaches the peak a
      step earlier. So for `teacher_temp`.
    weight_decay: start, final: half a cosine.
    teacher_momentum: start, final: half a cosine.
    teacher_temp: start, final, warmup_steps: linear, then constant.
    local_weight: start, final, first_step, steps: of the DINO loss of local crops, as
      `cosine`.
    gram_weight: the same of the Gram loss.
    total_steps: length of the run.
  """

  def warmup_cosine(*, peak, final, warmup_steps, warmup):
    rise = optax.linear_schedule(0.0, peak, warmup_steps)
    if warmup == "cosine":
      rise = cosine(start=0.0, final=peak, steps=warmup_steps)
    fall = optax.cosine_decay_schedule(
      peak, total_steps - warmup_steps, alpha=final / peak if peak else 0.0
    )
    return optax.join_schedules([rise, fall], [warmup_steps])

  def linear(*, start, final, warmup_steps):
    if warmup_steps == 0:  # optax would stay at `start`
      return optax.constant_schedule(final)
    return optax.linear_schedule(start, final, warmup_steps)

  return Schedules(
    learning_rate=warmup_cosine(**learning_rate),
    weight_decay=cosine(**weight_decay, steps=total_steps),
    teacher_momentum=cosine(**teacher_momentum, steps=total_steps),
    teacher_temp=linear(**teacher_temp),
    local_weight=cosine(**local_weight),
    gram_weight=cosine(**gram_weight),
  )
