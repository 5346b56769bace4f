"""Intervals of shares are those of resampled images."""

import math

import numpy as np
import pytest

from dinojax.evals import intervals


@pytest.mark.parametrize("share, images", [(0.5, 64), (0.9, 200), (0.02, 150)])
def test_an_interval_is_that_of_test_images_drawn_with_replacement(share, images):
  right = np.arange(images) < share * images
  rows = np.random.default_rng(7).integers(0, images, (40_000, images))
  wanted = np.quantile(np.float64(right)[rows].mean(1), [0.025, 0.975])
  found = intervals.of_share(float(right.mean()), images, seed=0)
  # A quantile of whole numbers of images may be off by one of them.
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1 / images + 1e-12)


def test_the_ends_hold_95_percent_of_the_binomial_distribution():
  images, share = 500, 0.8
  low, high = (round(x * images) for x in intervals.of_share(share, images, seed=3))
  mass = [
    math.comb(images, k) * share**k * (1 - share) ** (images - k)
    for k in range(images + 1)
  ]
  assert sum(mass[:low]) < 0.03 and sum(mass[high + 1 :]) < 0.03
  assert 0.94 < sum(mass[low : high + 1]) < 0.97


def test_the_seed_alone_decides_and_the_ends_hold_the_share():
  one = intervals.of_share(0.7, 1_000, seed=1)
  assert one == intervals.of_share(0.7, 1_000, seed=1)
  assert one != intervals.of_share(0.7, 1_000, seed=2)
  assert one[0] < 0.7 < one[1]
  assert intervals.of_share(1.0, 10, seed=0) == (1.0, 1.0)
  assert intervals.of_share(0.0, 10, seed=0) == (0.0, 0.0)


def test_top_1_of_whole_training_sets_alone_gets_an_interval():
  found = {"knn_top1_k3": 0.5, "knn_top5_k3": 0.9, "knn_top1_k3_shots5": 0.4}
  found |= {"linear_top1": 0.25, "logreg_top1": 0.75, "logreg_c": 1.0}
  more = set(intervals.added(found, 100, seed=0)) - set(found)
  shares = ("knn_top1_k3", "linear_top1", "logreg_top1")
  assert more == {f"{name}_{end}" for name in shares for end in ("low", "high")}
