"""Fused colour and blur against float64 NumPy, and against Pillow where they agree."""

import itertools
import math
import types

import cv2
import numpy as np
import photographs
import pytest
from PIL import Image, ImageEnhance, ImageOps

from dinojax.data import photometric

LUMA = np.array([0.299, 0.587, 0.114])
STILL = dict(brightness=1.0, contrast=1.0, saturation=1.0, turn=0.0)
YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def colored(image, **factors):
  luma = photometric.mean_luma(image)
  return cv2.transform(image, photometric.color_matrix(luma, **STILL | factors))


def one_by_one(image, order, factors):
  """The four steps of the jitter in float64, neither rounded nor clipped."""
  x = image.astype(np.float64)
  for step in order:
    if step == "brightness":
      x = x * factors[step]
    elif step == "contrast":
      mean = (x @ LUMA).mean()
      x = mean + (x - mean) * factors[step]
    elif step == "saturation":
      grey = (x @ LUMA)[..., None]
      x = grey + (x - grey) * factors[step]
    else:
      angle = 2 * math.pi * factors[step]
      c, s = math.cos(angle), math.sin(angle)
      turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
      x = x @ (np.linalg.inv(YIQ) @ turn @ YIQ).T
  return x


@pytest.mark.parametrize("order", list(itertools.permutations(STILL))[::5])
def test_one_matrix_is_the_four_steps_in_any_order(order):
  image = (photographs.noise() // 2 + 60).astype(np.uint8)  # nothing is clipped
  factors = dict(brightness=0.8, contrast=0.9, saturation=1.2, turn=0.07)
  expected = one_by_one(image, order, factors)
  assert expected.min() > 0 and expected.max() < 255
  # The luma of the matrices is rounded to four digits, and the result to a level.
  assert np.abs(colored(image, **factors) - expected).max() < 0.7


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize(
  ("name", "pillow"),
  [
    ("brightness", ImageEnhance.Brightness),
    ("contrast", ImageEnhance.Contrast),
    ("saturation", ImageEnhance.Color),
  ],
)
def test_a_single_factor_does_what_pillows_enhancer_does(name, pillow, factor):
  for image in (photographs.noise(), photographs.photograph(60, 80)):
    expected = np.asarray(pillow(Image.fromarray(image)).enhance(factor), np.float64)
    assert np.abs(colored(image, **{name: factor}) - expected).max() <= 1


def test_a_turn_of_the_hue_keeps_luma_and_greys():
  image = (photographs.noise() // 3 + 80).astype(np.uint8)
  turned = colored(image, turn=0.3)
  assert np.abs(turned @ LUMA - image @ LUMA).max() < 1
  assert np.abs(turned.astype(int) - image).max() > 20
  grey = np.repeat(image[..., :1], 3, axis=-1)
  assert np.abs(colored(grey, turn=0.3).astype(int) - grey).max() <= 1


@pytest.mark.parametrize("variances", [(-0.3, -0.1), (0.1, 0.4), (0.5, 2.0), (0, 1)])
def test_a_filter_has_the_variances_that_it_is_asked_for(variances):
  place = np.arange(31) - 15
  for axis, variance in enumerate(variances):
    line = np.full((31, 31, 3), 60, np.uint8)  # room below for negative taps
    line[(slice(None), 15) if axis == 0 else 15] = 180
    response = photometric.smooth(line, variance=variances, kernel=99) - 60.0
    along = response[15, :, 0] if axis == 0 else response[:, 15, 0]
    assert along.sum() == pytest.approx(120, abs=3)
    assert (along @ place**2) / 120 == pytest.approx(variance, abs=0.15)


@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0])
def test_a_blur_is_a_gaussian_of_so_many_taps_at_most(sigma):
  image, side = photographs.noise(), 48
  taps = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
  taps /= taps.sum()
  x = np.pad(image.astype(np.float64), ((4, 4), (4, 4), (0, 0)), mode="reflect")
  for axis in (0, 1):
    x = sum(
      weight * np.take(x, range(i, i + side), axis) for i, weight in enumerate(taps)
    )
  ours = photometric.smooth(image, variance=(sigma**2, sigma**2), kernel=9)
  # Three sigmas, where a Gaussian ends here, leave out 0.3% of it.
  assert np.abs(ours - x).max() <= 1.5


def test_solarize_inverts_from_128_upwards():
  image = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=-1)
  expected = ImageOps.solarize(Image.fromarray(image), threshold=128)
  np.testing.assert_array_equal(photometric.solarize(image), np.asarray(expected))


def ranges_of(count, *, grey, blur, solarize):
  """Ranges of crops with these probabilities, half of them jittered."""
  kind = types.SimpleNamespace(
    jitter=photometric.Jitter(0.5, 0.4, 0.3, 0.2, 0.1),
    grey_prob=grey,
    blur=photometric.Blur(blur, (0.1, 2.0), 9),
    solarize_prob=solarize,
  )
  return photometric.Ranges([kind] * count)


def test_each_step_is_drawn_with_its_probability_and_over_its_whole_range():
  ranges = ranges_of(10, grey=0.0, blur=0.25, solarize=0.75)
  rng = np.random.default_rng(0)
  drawn = [x for _ in range(400) for x in photometric.sample_appearances(rng, ranges)]
  sigmas = np.array([x.sigma for x in drawn if x.sigma])
  factors = np.array([x.factors for x in drawn if x.factors])
  solarized = sum(x.solarize for x in drawn)
  shares = np.array([len(sigmas), len(factors), solarized]) / len(drawn)
  np.testing.assert_allclose(shares, [0.25, 0.5, 0.75], atol=0.03)  # 4 deviations
  for values, low, high in (
    (sigmas, 0.1, 2.0),
    *zip(factors.T, (0.6, 0.7, 0.8, -0.1), (1.4, 1.3, 1.2, 0.1), strict=True),
  ):
    assert low <= values.min() < low + 0.01 * (high - low)
    assert high >= values.max() > high - 0.01 * (high - low)


def test_grey_takes_saturation_from_a_crop_and_leaves_its_other_factors():
  ranges = ranges_of(20, grey=1.0, blur=0.0, solarize=0.0)
  rng = np.random.default_rng(0)
  drawn = photometric.sample_appearances(rng, ranges)
  factors = np.array([x.factors for x in drawn])
  assert (factors[:, 2] == 0).all()
  plain = (factors[:, [0, 1, 3]] == [1, 1, 0]).all(axis=1)
  assert 2 < plain.sum() < 18
