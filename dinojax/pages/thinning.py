"""Thinning of long curves: mean, least and greatest value of each bin of steps.

No peak is lost, as its height stays in the bin's greatest value. Free of JAX.
"""

import dataclasses

import numpy as np

MAX_POINTS = 1_500  # of a curve: more than a screen has columns for one


@dataclasses.dataclass(frozen=True)
class Curve:
  """A curve as it is drawn.

  steps: [p] float, mean step of a bin. mean, low, high: [p] float, of its values.
  per_point: most values of a bin; 1: nothing is thinned.
  """

  steps: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray
  per_point: int


def thin(
  steps: np.ndarray, values: np.ndarray, *, max_points: int = MAX_POINTS
) -> Curve:
  """Bins a series by count, so that each bin has as many values, but for the last.

  Args:
    steps: [n], rising.
    values: [n], finite.
    max_points: of the result, at least 1.
  """
  count = len(steps)
  per_point = max(-(-count // max_points), 1)
  starts = np.arange(0, count, per_point)
  if per_point == 1:
    values = np.asarray(values, float)
    return Curve(np.asarray(steps, float), values, values, values, 1)
  sizes = np.diff(np.append(starts, count))
  return Curve(
    steps=np.add.reduceat(np.asarray(steps, float), starts) / sizes,
    mean=np.add.reduceat(np.asarray(values, float), starts) / sizes,
    low=np.minimum.reduceat(values, starts),
    high=np.maximum.reduceat(values, starts),
    per_point=per_point,
  )
