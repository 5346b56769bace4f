"""Patch tokens of images by sliding windows."""

import blocks
import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from dinojax import errors, sharding
from dinojax.evals import sliding

PATCH = 2


def network(params, images):
  """Tokens that know their place in a window: [B, N, 2], (value, value * place)."""
  value = params * images[:, ::PATCH, ::PATCH, :1].reshape(len(images), -1, 1)
  place = np.arange(value.shape[1])
  return value * np.stack([np.ones_like(place), place], -1)


def test_each_token_is_the_mean_of_the_windows_that_show_it():
  images = np.random.default_rng(0).integers(200, size=(3, 14, 14, 3)).astype(np.uint8)
  seen = sliding.patch_tokens(network, window=6, patch_size=PATCH)
  found = seen(np.float32(0.5), images)
  starts = (0, 2, 4)  # of windows of 3 patches, over 7
  total, count = np.zeros((3, 7, 7, 2)), np.zeros((7, 7, 1))
  for top in starts:
    for left in starts:
      box = slice(top, top + 3), slice(left, left + 3)
      pixels = [slice(2 * x.start, 2 * x.stop) for x in box]
      cut = np.float64(images[:, *pixels])
      total[:, *box] += network(0.5, cut).reshape(3, 3, 3, 2)
      count[box] += 1
  assert set(count.ravel().tolist()) == {1, 2, 4}
  np.testing.assert_allclose(found, (total / count).reshape(3, 49, 2), rtol=1e-6)


def test_a_window_of_the_whole_image_changes_nothing():
  images = np.random.default_rng(0).integers(200, size=(2, 8, 8, 3)).astype(np.uint8)
  seen = sliding.patch_tokens(network, window=8, patch_size=PATCH)
  np.testing.assert_array_equal(
    seen(np.float32(1), images), network(np.float32(1), np.float32(images))
  )


@pytest.mark.parametrize("grid, size", [(7, 3), (32, 14), (5, 1), (4, 4), (37, 16)])
def test_shares_of_every_patch_add_up_to_one(grid, size):
  found = sliding.shares(grid, size)
  np.testing.assert_allclose(found.sum((1, 2)), 1, rtol=1e-6)
  assert (found.sum((0, 2)) > 0).all(), "a window is for nothing"


def test_eight_devices_see_the_windows_of_one():
  images = np.random.default_rng(0).integers(200, size=(8, 16, 16, 3)).astype(np.uint8)

  def apply(params, images):
    x = images.reshape(len(images), 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(len(images), 4, -1).astype(np.float32) @ params

  seen = sliding.patch_tokens(apply, window=8, patch_size=blocks.PATCH)
  alone = seen(blocks.PROJECTION.astype(np.float32), images)
  mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))
  batch = sharding.put_batch(mesh, {"image": images}, tuple(range(8)), 8)
  shared = seen(blocks.PROJECTION.astype(np.float32), batch["image"])
  assert shared.sharding.spec[0] is not None  # split over the devices still
  np.testing.assert_allclose(shared, alone, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("window, nearest", [(10, 8), (20, 16), (0, 4)])
def test_a_window_that_cannot_slide_is_one_line(window, nearest):
  with pytest.raises(errors.UserError, match=f"--window={window} .*; try {nearest}$"):
    sliding.check(window, field="--window", side=16, patch_size=4)
