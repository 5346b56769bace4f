"""Masks: exactly half the crops, exactly the asked patches, always U of them."""

import numpy as np
import pytest
from scipy import ndimage

from dinojax.data import masking

REFERENCE = dict(group_size=16, views=2, grid=16, ratio_min=0.1, ratio_max=0.5)


def draw(seed, **arguments):
  return masking.block_masks(np.random.default_rng(seed), **arguments)


def test_counts_are_the_upper_edges_of_equal_bins():
  # By hand: N = 256, 16 masked crops, edges 0.1 + 0.025 i: 0.125 * 256 = 32, ...
  assert masking.counts(**REFERENCE) == [
    *(32, 38, 44, 51, 57, 64, 70, 76),
    *(83, 89, 96, 102, 108, 115, 121, 128),
  ]
  assert masking.slots(**REFERENCE) == 1274


def test_a_ratio_that_is_whole_in_patches_is_not_rounded_down():
  # The fifth edge is 0.225 of 400 patches, in floating point 89.99999999999999.
  arguments = dict(group_size=8, views=2, grid=20, ratio_min=0.1, ratio_max=0.3)
  assert masking.counts(**arguments)[4] == 90


@pytest.mark.parametrize("grid", [1, 2, 3, 4, 7, 16, 37])
@pytest.mark.parametrize("group_size", [1, 2, 8])
def test_half_of_the_crops_are_masked_by_exactly_the_counts(grid, group_size):
  arguments = REFERENCE | dict(grid=grid, group_size=group_size)
  counts = masking.counts(**arguments)
  for seed in range(20):
    mask = draw(seed, **arguments)["mask"]
    assert mask.shape == (group_size, 2, grid**2)
    assert mask.dtype == bool
    per_crop = np.sort(mask.sum(axis=-1).reshape(-1))
    assert per_crop.tolist() == [0] * group_size + counts


@pytest.mark.parametrize("ratios", [(0.0, 0.0), (0.1, 0.5), (0.9, 1.0)])
def test_any_ratio_gives_its_counts(ratios):
  arguments = REFERENCE | dict(grid=6, ratio_min=ratios[0], ratio_max=ratios[1])
  mask = draw(0, **arguments)["mask"]
  assert mask.sum() == masking.slots(**arguments)


def test_indices_and_weights_belong_to_the_masked_patches():
  masks = draw(1, **REFERENCE)
  indices, weights = masks["masked_indices"], masks["masked_weights"]
  assert (indices.dtype, weights.dtype) == (np.int32, np.float32)
  assert indices.shape == weights.shape == (masking.slots(**REFERENCE),)
  np.testing.assert_array_equal(indices, np.flatnonzero(masks["mask"].reshape(-1)))
  # A crop's weights sum to 1, so the weighted loss is a mean of means over g V crops.
  per_crop = np.bincount(indices // 256, weights, minlength=32)
  np.testing.assert_allclose(per_crop, masks["mask"].any(axis=-1).reshape(-1), 1e-6)
  values = np.random.default_rng(2).normal(size=32 * 256)
  means = [
    values.reshape(32, 256)[crop, masked].mean() if masked.any() else 0.0
    for crop, masked in enumerate(masks["mask"].reshape(32, 256))
  ]
  loss = np.sum(weights * values[indices]) / 32
  np.testing.assert_allclose(loss, np.mean(means), 1e-5)


def test_the_same_rng_gives_the_same_masks_and_another_gives_others():
  first, again, other = draw(3, **REFERENCE), draw(3, **REFERENCE), draw(4, **REFERENCE)
  for name in first:
    np.testing.assert_array_equal(first[name], again[name])
  assert (first["mask"] != other["mask"]).any()


def test_no_crop_no_view_and_no_side_is_masked_more_often_than_another():
  masks = np.stack([draw(seed, **REFERENCE)["mask"] for seed in range(200)])
  crops = masks.any(axis=-1).mean(axis=0)  # [g, V], binomial around 1/2
  assert np.abs(crops - 0.5).max() < 0.15
  # Every view gets large and small masks alike.
  np.testing.assert_allclose(masks.mean(axis=(0, 1, 3)), 1274 / 32 / 256, rtol=0.1)
  patches = masks.mean(axis=(0, 1, 2)).reshape(16, 16)
  assert patches.min() > 0  # Blocks reach corners rarely: 2% against 27% in the middle.
  for mirrored in (patches[::-1], patches[:, ::-1], patches.T):
    assert np.abs(patches - mirrored).max() < 0.04


def test_masks_are_blocks_not_scattered_patches():
  # Random patches of the same number fall into about 60 pieces of an 8 x 8 grid.
  arguments = dict(group_size=1, views=2, grid=16, ratio_min=0.25, ratio_max=0.25)
  pieces = []
  for seed in range(50):
    mask = draw(seed, **arguments)["mask"].any(axis=1).reshape(16, 16)
    pieces.append(ndimage.label(mask)[1])
  assert np.mean(pieces) < 6


def test_a_block_is_a_rectangle_of_at_most_so_many_patches():
  rng = np.random.default_rng(5)
  for most in range(4, 33):
    mask = np.zeros((8, 8), bool)
    assert masking._add_block(rng, mask, most)
    rows, columns = mask.any(axis=1), mask.any(axis=0)
    np.testing.assert_array_equal(mask, np.outer(rows, columns))
    assert 3 <= mask.sum() <= most  # An area of 4 may round to sides of 1 and 3.
