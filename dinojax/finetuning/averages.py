"""Moving averages of a fine-tuning: of what it trains, and of a norm's statistics."""

from typing import Any

import jax
import jax.numpy as jnp


def averaged(average: Any, trained: Any, step: jax.Array, *, momentum: float) -> Any:
  """The moving average after an update.

  Its momentum rises with the step to the one given, so that first weights are forgotten
  early: (1 + step) / (10 + step), as TensorFlow's moving averages have it.

  Args:
    average: before.
    trained: after the update.
    step: updates before this one.
    momentum: of the average.
  """
  share = jnp.minimum(momentum, (1 + step) / (10 + step))
  return jax.tree.map(lambda x, y: share * x + (1 - share) * y, average, trained)
