"""Principal components are those of a float64 SVD, and pictures of them are sound."""

import numpy as np
import pytest

from dinojax import errors
from dinojax.pictures import components


def by_svd(rows, count):
  """Axes and shares by another algorithm."""
  x = np.float64(rows) - np.float64(rows).mean(0)
  _, values, axes = np.linalg.svd(x, full_matrices=False)
  return axes[:count], (values**2 / (values**2).sum())[:count]


@pytest.mark.parametrize("shape", [(40, 7), (6, 30)], ids=["tall", "wide"])
def test_components_are_those_of_an_svd_up_to_their_sign(shape):
  rows = np.random.default_rng(0).normal(size=shape) * np.arange(1, shape[1] + 1)
  found = components.fit(rows.astype(np.float32), 3)
  axes, shares = by_svd(rows.astype(np.float32), 3)
  np.testing.assert_allclose(abs((found.axes * axes).sum(1)), 1, rtol=1e-10)
  np.testing.assert_allclose(found.shares, shares, rtol=1e-9)
  coordinates = found.project(rows)
  np.testing.assert_allclose(
    np.cov(coordinates.T), np.diag(coordinates.var(0, ddof=1)), atol=1e-3
  )
  largest = np.take_along_axis(found.axes, abs(found.axes).argmax(1)[:, None], 1)
  assert (largest > 0).all()


def test_rows_of_low_rank_have_axes_of_zero_and_no_noise():
  line = np.outer(np.arange(9.0), np.ones(5))
  found = components.fit(line, 3)
  np.testing.assert_allclose(found.shares, [1, 0, 0], atol=1e-12)
  np.testing.assert_array_equal(found.axes[1:], 0)
  one = components.fit(np.ones((1, 5)), 3)  # a single row has no variance
  np.testing.assert_array_equal(one.axes, 0)
  np.testing.assert_array_equal(components.to_bytes(one.project(np.ones((1, 5)))), 128)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused_with_the_first_of_them(bad):
  rows = np.zeros((5, 3))
  rows[3, 1] = bad
  with pytest.raises(errors.UserError, match=r"1 of 5 are not finite .* number 3"):
    components.fit(rows, 2)
  with pytest.raises(errors.UserError, match="no rows"):
    components.fit(rows[:0], 2)


def test_the_threshold_parts_two_classes_as_an_exhaustive_search_does():
  rng = np.random.default_rng(1)
  values = np.concatenate([rng.normal(-3, 0.5, 300), rng.normal(2, 1, 100)])
  cut = components.threshold(values)

  def within(t):
    parts = values[values <= t], values[values > t]
    return sum(len(part) * part.var() for part in parts if len(part))

  best = min(map(within, np.sort(values)))
  assert within(cut) <= 1.01 * best
  assert -2 < cut < 0


@pytest.mark.parametrize("sign", [1, -1])
def test_the_foreground_is_the_side_that_is_less_at_the_borders(sign):
  first = np.full((2, 6, 6), -1.0)
  first[:, 2:4, 2:5] = 1.0
  mask = components.foreground(sign * first)
  np.testing.assert_array_equal(mask, first > 0)


def test_equal_tokens_have_equal_colours_jointly_and_the_background_is_black():
  rng = np.random.default_rng(2)
  thing, other, ground = rng.normal(size=(3, 12))
  tokens = np.tile(ground, (2, 8, 8, 1))
  tokens[0, 2:5, 2:4], tokens[1, 3:6, 4:6] = thing, thing
  tokens[0, 2:5, 4:6], tokens[1, 3:6, 2:4] = other, other
  tokens += 1e-3 * rng.normal(size=tokens.shape)
  found = components.colours(tokens.astype(np.float32))
  for kind in ("own", "joint", "foreground"):
    assert found[kind].shape == (2, 8, 8, 3) and found[kind].dtype == np.uint8
  joint = found["joint"].astype(int)
  assert abs(joint[0, 3, 2] - joint[1, 4, 5])[:2].max() <= 3  # the third is noise
  assert abs(joint[0, 3, 2] - joint[0, 3, 5]).max() > 50
  assert found["mask"].sum() == 24
  np.testing.assert_array_equal(found["foreground"][~found["mask"]], 0)
  one = components.colours(tokens[:1])  # a single image has its own components alone
  np.testing.assert_array_equal(one["own"], one["joint"])


def test_a_channel_is_stretched_between_percentiles():
  column = np.arange(101.0)[:, None]
  stretched = components.to_bytes(column)[:, 0]
  assert stretched[[0, 1, 50, 99, 100]].tolist() == [0, 0, 128, 255, 255]
