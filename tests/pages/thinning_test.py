"""A curve that is thinned keeps its means, and every peak."""

import numpy as np
import pytest

from dinojax.pages import thinning


@pytest.mark.parametrize("count", [1, 7, 10, 11, 1_003])
def test_bins_are_those_of_numpy(count):
  rng = np.random.default_rng(count)
  steps, values = np.arange(count) * 5 + 5, rng.normal(size=count)
  curve = thinning.thin(steps, values, max_points=10)
  bins = [slice(i, i + curve.per_point) for i in range(0, count, curve.per_point)]
  assert len(curve.mean) == len(bins) <= 10
  for name, function in (("mean", np.mean), ("low", np.min), ("high", np.max)):
    wanted = [function(values[part]) for part in bins]
    np.testing.assert_allclose(getattr(curve, name), wanted)
  np.testing.assert_allclose(curve.steps, [steps[part].mean() for part in bins])


def test_a_single_spike_in_a_million_steps_is_seen():
  values = np.zeros(1_000_000)
  values[123_456] = 9.0
  curve = thinning.thin(np.arange(len(values)), values)
  assert curve.high.max() == 9.0
  assert len(curve.mean) <= thinning.MAX_POINTS


def test_short_curves_stay_as_they_are():
  curve = thinning.thin(np.array([1, 3]), np.array([0.5, 0.25]))
  assert curve.per_point == 1
  assert curve.steps.tolist() == [1, 3]
  assert curve.low.tolist() == curve.mean.tolist() == curve.high.tolist() == [0.5, 0.25]
