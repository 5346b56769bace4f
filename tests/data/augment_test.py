"""Multi-crop: what each probability touches, the batch contract, and bad configs."""

import io
import pickle

import numpy as np
import photographs
import pytest
from PIL import Image

from dinojax.data import augment, photometric
from experiments import vitg14

JITTER_OFF = dict(prob=0.0, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
BLUR_OFF = dict(prob=0.0, sigma=(0.1, 2.0), kernel=9)
STILL = dict(rotate=0.0, shear=0.0, perspective=0.0, dihedral=False)
PLAIN = dict(size=32, area=(0.3, 1.0), aspect=(3 / 4, 4 / 3), flip_prob=0.0)
PLAIN |= dict(geometry=STILL, jitter=JITTER_OFF, grey_prob=0.0, blur=BLUR_OFF)
PLAIN |= dict(solarize_prob=0.0)
WHOLE = dict(area=(1.0, 1.0), aspect=(1.0, 1.0))  # of a square image


def build(max_pixels=10**6, **changes):
  """A multi-crop that only cuts boxes, but for `changes` in all three kinds of crop."""
  crop = {**PLAIN, **changes}
  return augment.make_multi_crop(
    global1=crop, global2=crop, local=crop, num_local=4, max_pixels=max_pixels
  )


def test_with_every_step_off_a_whole_image_of_the_crops_size_is_copied():
  image = photographs.noise(32)
  crops = build(**WHOLE)(np.random.default_rng(0), image)
  for views in crops.values():
    np.testing.assert_array_equal(views, np.stack([image] * len(views)))


def test_with_every_step_off_a_whole_square_image_is_only_resized():
  image = photographs.photograph(300, 300)
  crops = build(**WHOLE)(np.random.default_rng(0), image)
  resized = Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)
  for crop in (*crops["global_crops"], *crops["local_crops"]):
    assert photographs.psnr(crop, np.asarray(resized)) >= 35


def test_a_flip_mirrors_left_and_right():
  image = photographs.noise(64)
  plain = build()(np.random.default_rng(3), image)
  flipped = build(flip_prob=1.0)(np.random.default_rng(3), image)
  mirrored = plain["global_crops"][:, :, ::-1]
  difference = flipped["global_crops"].astype(int) - mirrored
  assert np.abs(difference).max() <= 2  # OpenCV's places are of 1/32 of a pixel


def test_a_jpeg_gives_the_crops_of_its_pixels_decoded_whole_or_small():
  image = np.asarray(Image.fromarray(photographs.photograph()).resize((1000, 800)))
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "JPEG", quality=95)
  pixels = np.asarray(Image.open(buffer))
  for area in ((0.1, 0.2), (0.9, 1.0)):  # scales of about 10 and 25
    multi_crop = build(area=area)
    small = multi_crop(np.random.default_rng(1), buffer.getvalue())
    whole = multi_crop(np.random.default_rng(1), pixels)
    for name in small:
      assert photographs.psnr(small[name], whole[name]) > 35


def test_the_limit_of_pixels_can_be_changed_and_is_named():
  buffer = io.BytesIO()
  Image.fromarray(photographs.noise(64)).save(buffer, "PNG")
  assert build(max_pixels=64 * 64)(np.random.default_rng(0), buffer.getvalue())
  with pytest.raises(ValueError, match=r"the limit of max_pixels=4095"):
    build(max_pixels=64 * 64 - 1)(np.random.default_rng(0), buffer.getvalue())


def test_grey_comes_before_solarize_and_after_blur():
  image = photographs.photograph(64, 64)
  blur = dict(prob=1.0, sigma=(1.5, 1.5), kernel=9)
  multi_crop = build(size=64, **WHOLE, grey_prob=1.0, blur=blur, solarize_prob=1.0)
  crop = multi_crop(np.random.default_rng(0), image)["global_crops"][0]
  blurred = photometric.smooth(image, variance=(1.5**2, 1.5**2), kernel=9)
  grey = np.rint(blurred @ photometric.LUMA)[..., None].repeat(3, -1).astype(np.uint8)
  assert np.abs(crop.astype(int) - photometric.solarize(grey)).max() <= 1


@pytest.mark.parametrize("step", ["flip", "jitter", "grey", "blur", "solarize"])
def test_each_step_touches_the_share_of_crops_that_its_probability_names(step):
  change = {
    "jitter": dict(jitter={**JITTER_OFF, "prob": 0.3}),
    "blur": dict(blur=dict(prob=0.3, sigma=(1.0, 2.0), kernel=9)),
  }.get(step, {f"{step}_prob": 0.3})
  multi_crop = build(size=16, **WHOLE, **change)
  image, rng = photographs.noise(16), np.random.default_rng(0)
  crops = np.concatenate([multi_crop(rng, image)["local_crops"] for _ in range(500)])
  touched = (crops != image).any(axis=(1, 2, 3)).mean()
  assert abs(touched - 0.3) < 0.04  # Four standard deviations of 2,000 draws.


def test_the_reference_recipe_gives_the_shapes_of_the_batch_contract():
  multi_crop = augment.make_multi_crop(**vitg14.get_config().augment)
  crops = multi_crop(np.random.default_rng(0), photographs.photograph())
  assert crops["global_crops"].shape == (2, 224, 224, 3)
  assert crops["local_crops"].shape == (8, 98, 98, 3)
  assert {crop.dtype for crop in crops.values()} == {np.dtype(np.uint8)}


def test_the_same_generator_state_gives_the_same_crops_also_after_pickling():
  multi_crop = augment.make_multi_crop(**vitg14.get_config().augment)
  image = photographs.photograph()  # A step that wrote into it would show, too.
  copy = pickle.loads(pickle.dumps(multi_crop))
  first, other = (multi_crop(np.random.default_rng(seed), image) for seed in (5, 6))
  again = copy(np.random.default_rng(5), image)
  for name in first:
    np.testing.assert_array_equal(first[name], again[name])
    assert (first[name] != other[name]).any()


def test_no_two_crops_of_an_image_are_the_same():
  crops = build()(np.random.default_rng(0), photographs.noise(64))
  crops = [crop.tobytes() for views in crops.values() for crop in views]
  assert len(set(crops)) == len(crops) == 6


@pytest.mark.parametrize("changes", [dict(sise=3), dict(blur={**BLUR_OFF, "sise": 3})])
def test_an_unknown_field_fails_by_name(changes):
  with pytest.raises(TypeError, match="sise"):
    build(**changes)
