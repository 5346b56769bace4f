"""Linear depth learns what colours tell, and chooses its head by RMSE."""

import blocks
import numpy as np
import pytest
import varied
from absl import flags

from dinojax import errors
from dinojax.evals import depth


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # Grain's


def evaluate(opened, steps=80, **changes):
  usual = dict(low=0.1, high=5.0, crop="none", batch_size=8, flip_prob=0.5, seed=0)
  found = depth.depth(
    blocks.reader((1, 1), **changes), opened, width=12, steps=steps, **usual
  )
  return {k.removeprefix("depth_"): x for k, x in found.items()}


def test_the_best_head_on_test_is_well_better_than_a_constant():
  train, test = (varied.Varied(24, s, (3,), varied.SIZES[:1]) for s in range(2))
  on_test = evaluate(dict(train=train, test=test))
  grid = on_test["grid"]
  assert list(grid) == ["lr0.0001", "lr0.0003", "lr0.001", "lr0.003"]
  assert on_test["chosen_on"] == "test"
  assert on_test["head"] == min(grid, key=grid.get)
  assert on_test["rmse"] == grid[on_test["head"]]
  # 1 to 4 m are equally frequent: the best constant is 1.1 m off.
  assert on_test["rmse"] < 0.9 and on_test["rmse"] < grid["lr0.0001"]
  assert 0 < on_test["absrel"] < 0.5 and on_test["delta1"] > 0.4


def test_features_that_are_not_finite_are_one_line():
  train = varied.Varied(8, 0)
  overflowing = blocks.PROJECTION.astype(np.float32) * np.inf
  with pytest.raises(errors.UserError, match="patch features are not finite"):
    evaluate(dict(train=train, test=train), params=overflowing)


def test_errors_of_all_images_are_means_of_those_of_each():
  # Of two images and one head: pixels, squares, relative errors, right ones.
  sums = np.array([[[4, 16, 2, 3]], [[1, 1, 0.25, 1]], [[0, 0, 0, 0]]])
  found = depth.mean_errors(sums, varied.Varied(1, 0))
  rmse = (2 + 1) / 2  # not the root of a mean over images
  np.testing.assert_allclose(found, [[rmse, (0.5 + 0.25) / 2, (0.75 + 1) / 2]])
