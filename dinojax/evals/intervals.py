"""Confidence intervals of shares of right answers, by bootstrap over test images."""

import re

import numpy as np

SHARES = re.compile(r"knn_top1_k\d+|linear_top1|logreg_top1")
LEVEL = 0.95
RESAMPLES = 10_000  # an end of an interval then varies by some 2% of its width


def added(found: dict, images: int, *, seed: int) -> dict:
  """The numbers of a task, and the ends of the interval of each of SHARES.

  Args:
    found: numbers by name.
    images: with a label, that they are shares of.
    seed: of `of_share`.

  Returns:
    `found` with "knn_top1_k10_low", "knn_top1_k10_high", ...
  """
  more = {}
  for name in filter(SHARES.fullmatch, found):
    ends = of_share(found[name], images, seed=seed)
    more |= dict(zip((f"{name}_low", f"{name}_high"), ends, strict=True))
  return found | more


def of_share(share: float, images: int, *, seed: int) -> tuple[float, float]:
  """The middle 95% of shares among as many images, drawn with replacement.

  How many of the drawn images are right is a binomial number, so that no image is drawn
  one by one. It shows what other test images would change, not other training. A share
  of 0 or 1 has no width.

  Args:
    share: of right answers, within 0..1.
    images: of the test set.
    seed: of NumPy's generator.
  """
  # Of a float32 share, too, the right answers are a whole number.
  right = round(share * images) / images
  shares = np.random.default_rng(seed).binomial(images, right, RESAMPLES) / images
  low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
  return float(low), float(high)
