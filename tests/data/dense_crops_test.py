"""Random crops of images and their maps lie over each other, and depend on the seed."""

import numpy as np
import pytest
from absl import flags

from dinojax.data import (
  dense_crops,
  dense_records,
  label_maps,
  mixture,
  photometric,
  sources,
)

STILL = photometric.Jitter(0.0, 0.0, 0.0, 0.0, 0.0)
BRIGHT = photometric.Jitter(1.0, 0.5, 0.5, 0.0, 0.0)


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # Grain's


def pair(height, width, *, times=1):
  """An image whose grey is 40 times the class of a coarse checkerboard."""
  classes = np.arange(-(-height // 10) * -(-width // 10)).reshape(-(-height // 10), -1)
  classes = (classes * 7 % 6).repeat(10, 0).repeat(10, 1)[:height, :width]
  image = np.repeat((40 * classes)[..., None], 3, -1).astype(np.uint8)
  return image, classes.repeat(times, 0).repeat(times, 1).astype(np.uint8)


def crop(pixels, values, seed=0, **changes):
  usual = dict(side=32, scale=(1.0, 1.0), flip_prob=0.0, jitter=STILL)
  kind = dense_crops.Crop(**usual | changes)
  rng = np.random.default_rng(seed)
  return dense_crops.sample(rng, pixels, values, kind, fill=label_maps.IGNORE)


@pytest.mark.parametrize("size", [(40, 70), (90, 50), (64, 64)])
@pytest.mark.parametrize("scale", [0.6, 1.0, 1.7])
def test_pixels_of_a_crop_have_the_class_of_the_map_there(size, scale):
  for seed in range(4):
    how = dict(scale=(scale, scale), flip_prob=0.5)
    image, values = crop(*pair(*size, times=2), seed, **how)
    known = values != label_maps.IGNORE
    # All but edges, which resizing blurs.
    right = np.abs(image[..., 0] - 40.0 * values) < 10
    assert right[known].mean() > 0.6
    assert np.array_equal(known, known.any(1)[:, None] & known.any(0))
    if scale >= 1:
      assert known.all()
    else:
      assert (image[~known] == 0).all() and not known.all()


def test_without_scale_a_crop_of_a_square_is_the_image_and_may_be_mirrored():
  pixels, values = pair(32, 32)
  image, found = crop(pixels, values)
  assert np.array_equal(image, pixels) and np.array_equal(found, values)
  image, found = crop(pixels, values, flip_prob=1.0)
  assert np.array_equal(image, pixels[:, ::-1])
  assert np.array_equal(found, values[:, ::-1])


def test_a_jittered_crop_has_other_colours_and_the_same_map():
  pixels, values = pair(32, 32)
  image, found = crop(pixels, values, jitter=BRIGHT)
  assert not np.array_equal(image, pixels) and np.array_equal(found, values)


def test_crops_mostly_of_one_class_are_drawn_again():
  values = np.zeros((40, 400), np.uint8)
  values[:, 300:] = np.arange(100) % 2
  pixels = np.zeros((40, 400, 3), np.uint8)
  shares = {}
  for largest in (1.0, 0.75):
    found = [crop(pixels, values, s, largest=largest)[1] for s in range(100)]
    shares[largest] = np.mean([(x == 0).mean() <= 0.75 for x in found])
  assert shares[1.0] < 0.4 and shares[0.75] > 0.85


class Corrupt:
  """Scenes, every third of which has a corrupt label map."""

  def __init__(self):
    self.source = sources.open_source("embedded:scenes:test", field="f")
    self.where, self.class_names, self.labels = self.source.where, (), None

  def __len__(self):
    return 30

  def __getitem__(self, index):
    broken = {"label_map": b""} if index % 3 == 0 else {}
    return self.source[index] | broken

  def name(self, index):
    return self.source.name(index)


def batches(rows, workers=0):
  opened = dense_crops.open_batches(
    mixture.Mixture([Corrupt()], [1.0]),
    seed=1,
    batch_size=6,
    rows=rows,
    maps=dense_records.LabelMaps(11),
    kind=dense_crops.Crop(16, (0.5, 2.0), 0.5, BRIGHT, 0.75),
    workers=workers,
  )
  try:
    return [next(opened) for _ in range(6)]
  finally:
    opened.close()


def test_two_hosts_see_what_one_sees_and_corrupt_maps_are_substituted():
  whole, halves = batches(range(6)), [batches(rows) for rows in ((0, 1, 2), (3, 4, 5))]
  for one, *parts in zip(whole, *halves, strict=True):
    for name in one:
      assert np.array_equal(one[name], np.concatenate([x[name] for x in parts]))
  bad = np.concatenate([x["bad_records"] for x in whole])
  assert set(bad["record"][bad["record"] >= 0] % 3) == {0}
  assert {x["map"].dtype for x in whole} == {np.dtype(np.uint8)}
