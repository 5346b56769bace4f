"""Multi-crop against Pillow, NumPy float64 oracles and the invariants of its steps."""

import colorsys
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from dinojax import errors
from dinojax.data import augment
from experiments import vitg14

JITTER_OFF = dict(prob=0.0, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
BLUR_OFF = dict(prob=0.0, sigma=(0.1, 2.0), kernel=9)
PLAIN = dict(size=32, area=(0.3, 1.0), aspect=(3 / 4, 4 / 3), flip_prob=0.0)
PLAIN |= dict(jitter=JITTER_OFF, grey_prob=0.0, blur=BLUR_OFF, solarize_prob=0.0)
WHOLE = dict(area=(1.0, 1.0), aspect=(1.0, 1.0))  # of a square image


def build(**changes):
  """A multi-crop that only cuts boxes, but for `changes` in all three kinds of crop."""
  crop = {**PLAIN, **changes}
  return augment.make_multi_crop(global1=crop, global2=crop, local=crop, num_local=4)


def synthetic_photograph(height=400, width=500, seed=0):
  """Light, hard edges and 1/f noise, as in a busy photograph: uint8 [H,W,3]."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[0:height, 0:width]
  frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
  frequency[0, 0] = 1
  image = np.empty((height, width, 3))
  for c in range(3):
    white = np.fft.fft2(rng.standard_normal((height, width)))
    noise = np.fft.ifft2(white / frequency**0.8).real
    light = np.sin(x / 90 + c) + np.cos(y / 70 - c)
    image[..., c] = 120 + 40 * noise / noise.std() + 25 * light
  image[np.hypot(y - 150, x - 200) < 80] += 40
  image[(3 * x + y) % 170 < 9] -= 60
  return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def random_image(side=48, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)


def worst(a, b):
  return np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()


def psnr(a, b):
  return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))


def test_boxes_fill_the_ranges_of_area_and_aspect():
  rng = np.random.default_rng(0)
  limits = dict(area=(0.05, 0.32), aspect=(3 / 4, 4 / 3))
  draws = [augment.sample_box(rng, 800, 1000, **limits) for _ in range(4000)]
  boxes = np.array(draws)  # [4000, 4]: top, left, height, width
  height, width = boxes.T[2:].astype(np.float64)
  share, ratio = height * width / (800 * 1000), width / height
  assert 0.0495 < share.min() < 0.055
  assert 0.315 < share.max() < 0.3205
  assert abs(share.mean() - 0.185) < 0.005
  assert 0.745 < ratio.min() < 0.76
  assert 1.32 < ratio.max() < 1.345
  assert abs(np.log(ratio).mean()) < 0.012
  assert boxes[:, :2].min(axis=0).tolist() == [0, 0]
  assert (boxes[:, :2] + boxes[:, 2:]).max(axis=0).tolist() == [800, 1000]


@pytest.mark.parametrize("shape", [(1, 1), (3, 1000), (1000, 3), (2, 1), (7, 8)])
@pytest.mark.parametrize("aspect", [(3 / 4, 4 / 3), (2.0, 3.0), (0.1, 0.2)])
def test_a_box_of_any_image_lies_inside_it_and_is_not_empty(shape, aspect):
  rng = np.random.default_rng(0)
  for _ in range(50):
    box = augment.sample_box(rng, *shape, area=(0.05, 1.0), aspect=aspect)
    assert 0 <= box[0] < box[0] + box[2] <= shape[0]
    assert 0 <= box[1] < box[1] + box[3] <= shape[1]


def test_an_image_too_narrow_for_any_try_gives_the_largest_central_box():
  rng, limits = np.random.default_rng(0), dict(area=(0.3, 1), aspect=(3 / 4, 4 / 3))
  assert augment.sample_box(rng, 3, 1000, **limits) == (0, 498, 3, 4)
  assert augment.sample_box(rng, 1000, 3, **limits) == (498, 0, 4, 3)


@pytest.mark.parametrize("size", [224, 98])
@pytest.mark.parametrize(
  ("height", "width"),
  [(100, 110), (150, 120), (80, 450), (230, 226), (224, 300), (280, 240), (400, 500)],
)
def test_resampling_is_within_35_db_of_pillows_antialiased_bicubic(size, height, width):
  image = synthetic_photograph()
  top, left = (400 - height) // 2, (500 - width) // 3
  ours = augment.resample(image, (top, left, height, width), size)
  pixels = Image.fromarray(image[top : top + height, left : left + width])
  pillow = np.asarray(pixels.resize((size, size), Image.Resampling.BICUBIC))
  assert psnr(ours, pillow) >= 35


def test_a_box_of_the_crops_own_size_is_copied():
  image = random_image(48)
  crop = augment.resample(image, (5, 9, 32, 32), 32)
  np.testing.assert_array_equal(crop, image[5:37, 9:41])


def test_with_every_step_off_a_whole_square_image_is_only_resized():
  image = synthetic_photograph(300, 300)
  crops = build(**WHOLE)(np.random.default_rng(0), image)
  resized = augment.resample(image, (0, 0, 300, 300), 32)
  for views in crops.values():
    np.testing.assert_array_equal(views, np.stack([resized] * len(views)))


def test_a_flip_mirrors_left_and_right():
  image = random_image(64)
  plain = build()(np.random.default_rng(3), image)
  flipped = build(flip_prob=1.0)(np.random.default_rng(3), image)
  mirrored = plain["global_crops"][:, :, ::-1]
  np.testing.assert_array_equal(flipped["global_crops"], mirrored)


@pytest.mark.parametrize("factor", [0.0, 0.6, 0.8, 1.0, 1.2, 1.4])
@pytest.mark.parametrize(
  ("ours", "pillow"),
  [
    (augment.adjust_brightness, ImageEnhance.Brightness),
    (augment.adjust_contrast, ImageEnhance.Contrast),
    (augment.adjust_saturation, ImageEnhance.Color),
  ],
)
def test_a_colour_factor_does_what_pillows_enhancer_does(ours, pillow, factor):
  for image in (random_image(), synthetic_photograph()):
    expected = pillow(Image.fromarray(image)).enhance(factor)
    assert worst(ours(image, factor), expected) <= 1


def test_zero_saturation_is_the_luma_of_itu_r_601_in_three_equal_channels():
  image = random_image()
  grey = augment.adjust_saturation(image, 0.0)
  assert worst(grey[..., 0], image @ np.array([0.299, 0.587, 0.114])) <= 1
  assert (np.ptp(grey, axis=-1) == 0).all()


@pytest.mark.parametrize("turn", [-0.1, -0.03, 0.02, 0.1, 0.5])
def test_a_hue_turn_follows_the_exact_turn_of_hsv(turn):
  image = cv2.resize(synthetic_photograph(), (40, 30))

  def exact(pixel):
    h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
    return 255 * np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v))

  expected = np.apply_along_axis(exact, -1, image)
  ours = augment.adjust_hue(image, turn).astype(np.float64)
  assert np.abs(ours - expected).mean() < 1
  assert worst(ours, expected) <= 10  # A 256th of a turn is up to 6 levels.
  np.testing.assert_array_equal(augment.adjust_hue(image, 0.0), image)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_is_the_separable_gaussian_of_nine_taps_with_mirrored_borders(sigma):
  image, side = random_image(48), 48
  taps = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
  taps /= taps.sum()
  padded = np.pad(image.astype(np.float64), ((4, 4), (4, 4), (0, 0)), mode="reflect")
  rows = sum(tap * padded[i : i + side] for i, tap in enumerate(taps))
  expected = sum(tap * rows[:, i : i + side] for i, tap in enumerate(taps))
  ours = augment.gaussian_blur(image, sigma=sigma, kernel=9)
  assert worst(ours, np.rint(expected)) <= 1


def test_solarize_inverts_from_128_upwards():
  image = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=-1)
  ours = augment.solarize(image)
  assert ours[0, [0, 127, 128, 255], 0].tolist() == [0, 127, 127, 0]
  expected = ImageOps.solarize(Image.fromarray(image), threshold=128)
  np.testing.assert_array_equal(ours, np.asarray(expected))


def test_colour_jitter_keeps_a_grey_image_grey():
  grey = np.repeat(random_image()[..., :1], 3, axis=-1)
  jitter = augment.Jitter(1.0, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
  for seed in range(20):
    ours = augment.jitter_color(np.random.default_rng(seed), grey, jitter)
    assert (np.ptp(ours, axis=-1) == 0).all()


class FixedFactors:
  """Draws every factor at the top of its range, and orders as NumPy does."""

  def __init__(self, seed):
    self.permutation = np.random.default_rng(seed).permutation

  def uniform(self, low, high):
    return high


def test_the_four_parts_of_the_jitter_come_in_a_random_order():
  image = random_image()
  jitter = augment.Jitter(1.0, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
  draws = [augment.jitter_color(FixedFactors(i), image, jitter) for i in range(200)]
  # Nearly all of the 24 orders give an image of their own.
  assert 12 <= len({image.tobytes() for image in draws}) <= 24


def test_grey_comes_before_blur_and_blur_before_solarize():
  image = synthetic_photograph(64, 64)
  blur = dict(prob=1.0, sigma=(1.5, 1.5), kernel=9)
  multi_crop = build(size=64, **WHOLE, grey_prob=1.0, blur=blur, solarize_prob=1.0)
  crop = multi_crop(np.random.default_rng(0), image)["global_crops"][0]
  grey = augment.adjust_saturation(image, 0.0)
  blurred = augment.gaussian_blur(grey, sigma=1.5, kernel=9)
  np.testing.assert_array_equal(crop, augment.solarize(blurred))


@pytest.mark.parametrize("step", ["flip", "jitter", "grey", "blur", "solarize"])
def test_each_step_touches_the_share_of_crops_that_its_probability_names(step):
  change = {
    "jitter": dict(jitter={**JITTER_OFF, "prob": 0.3}),
    "blur": dict(blur=dict(prob=0.3, sigma=(1.0, 2.0), kernel=9)),
  }.get(step, {f"{step}_prob": 0.3})
  multi_crop = build(size=16, **WHOLE, **change)
  image, rng = random_image(16), np.random.default_rng(0)
  crops = np.concatenate([multi_crop(rng, image)["local_crops"] for _ in range(500)])
  touched = (crops != image).any(axis=(1, 2, 3)).mean()
  assert abs(touched - 0.3) < 0.04  # Four standard deviations of 2,000 draws.


def test_the_reference_recipe_gives_the_shapes_of_the_batch_contract():
  multi_crop = augment.make_multi_crop(**vitg14.get_config().augment)
  crops = multi_crop(np.random.default_rng(0), synthetic_photograph())
  assert crops["global_crops"].shape == (2, 224, 224, 3)
  assert crops["local_crops"].shape == (8, 98, 98, 3)
  assert {crop.dtype for crop in crops.values()} == {np.dtype(np.uint8)}


def test_the_same_generator_state_gives_the_same_crops_also_after_pickling():
  multi_crop = augment.make_multi_crop(**vitg14.get_config().augment)
  image = synthetic_photograph()  # A step that wrote into it would show, too.
  copy = pickle.loads(pickle.dumps(multi_crop))
  first, other = (multi_crop(np.random.default_rng(seed), image) for seed in (5, 6))
  again = copy(np.random.default_rng(5), image)
  for name in first:
    np.testing.assert_array_equal(first[name], again[name])
    assert (first[name] != other[name]).any()


def test_no_two_crops_of_an_image_are_the_same():
  crops = build()(np.random.default_rng(0), random_image(64))
  crops = [crop.tobytes() for views in crops.values() for crop in views]
  assert len(set(crops)) == len(crops) == 6


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(size=0), "size=0 must be at least 1 pixel"),
    (dict(area=(0.5, 0.1)), "area=(0.5, 0.1) must rise within (0, 1]"),
    (dict(area=(0.0, 0.5)), "area=(0.0, 0.5) must rise"),
    (dict(area=(0.5, 1.1)), "area=(0.5, 1.1) must rise"),
    (dict(aspect=(2, 1)), "aspect=(2, 1) must rise and be above 0"),
    (dict(flip_prob=1.5), "flip_prob=1.5 must be in [0, 1]"),
    (dict(grey_prob=-0.1), "grey_prob=-0.1 must be in [0, 1]"),
    (dict(solarize_prob=2), "solarize_prob=2 must be in [0, 1]"),
    (dict(jitter={**JITTER_OFF, "prob": 9}), "jitter.prob=9 must be in [0, 1]"),
    (dict(jitter={**JITTER_OFF, "hue": 0.6}), "jitter.hue=0.6 must be in [0, 0.5]"),
    (dict(jitter={**JITTER_OFF, "contrast": -1}), "jitter.contrast=-1 must be 0"),
    (dict(blur={**BLUR_OFF, "sigma": (0, 1)}), "blur.sigma=(0, 1) must rise"),
    (dict(blur={**BLUR_OFF, "kernel": 8}), "blur.kernel=8 must be odd"),
  ],
)
def test_a_value_outside_its_limits_is_named_with_them(changes, message):
  crops = dict(global1=PLAIN, global2=PLAIN, local={**PLAIN, **changes})
  with pytest.raises(errors.UserError) as caught:
    augment.make_multi_crop(**crops, num_local=4)
  assert str(caught.value).startswith(f"config.augment.local.{message}")


def test_global_crops_of_two_sizes_or_no_local_crop_are_refused():
  crops = dict(global1=PLAIN, global2=PLAIN, local=PLAIN, num_local=4)
  with pytest.raises(errors.UserError, match=r"global2\.size=48 must equal .*=32"):
    augment.make_multi_crop(**{**crops, "global2": {**PLAIN, "size": 48}})
  with pytest.raises(errors.UserError, match=r"config\.augment\.num_local=0"):
    augment.make_multi_crop(**{**crops, "num_local": 0})


@pytest.mark.parametrize("changes", [dict(sise=3), dict(blur={**BLUR_OFF, "sise": 3})])
def test_an_unknown_field_fails_by_name(changes):
  with pytest.raises(TypeError, match="sise"):
    build(**changes)
