"""Resized position embeddings beside PyTorch's interpolate, which trained the weights.

Models without registers: a scale factor of (n + 0.1) / M, no antialiasing. With them:
the target size, antialiased.
"""

import numpy as np
import pytest
import torch

from dinojax.networks import positions

TARGETS = [(16, 16), (37, 37), (7, 7), (1, 1), (16, 17), (5, 23), (40, 9), (73, 36)]
SOURCES = pytest.mark.parametrize("m", [16, 37])
GRIDS = pytest.mark.parametrize("height, width", TARGETS)


def pos_embed(m, width=3):
  return np.random.default_rng(m).normal(size=(m * m, width)).astype(np.float32)


def torch_resize(embedding, m, **options):
  # In float64: in float32 PyTorch rounds its sampling points, by up to 1e-5 here.
  square = torch.tensor(embedding, dtype=torch.float64)
  square = square.reshape(1, m, m, -1).permute(0, 3, 1, 2)
  resized = torch.nn.functional.interpolate(square, mode="bicubic", **options)
  return resized.permute(0, 2, 3, 1).reshape(-1, embedding.shape[-1]).numpy()


@SOURCES
@GRIDS
def test_plain_resize_equals_interpolate_with_the_offset_scale_factor(m, height, width):
  embedding = pos_embed(m)
  found = positions.resize(embedding, height, width, antialias=False)
  scale = ((height + 0.1) / m, (width + 0.1) / m)
  wanted = torch_resize(embedding, m, scale_factor=scale, antialias=False)
  if (height, width) == (m, m):
    wanted = embedding  # the reference returns it untouched
  np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


@SOURCES
@GRIDS
def test_antialiased_resize_equals_interpolate_to_the_target_size(m, height, width):
  embedding = pos_embed(m)
  found = positions.resize(embedding, height, width, antialias=True)
  wanted = torch_resize(embedding, m, size=(height, width), antialias=True)
  np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("antialias", [False, True])
def test_the_native_grid_is_left_bit_for_bit_alone(antialias):
  embedding = pos_embed(16)
  found = positions.resize(embedding, 16, 16, antialias=antialias)
  np.testing.assert_array_equal(found, embedding)


@pytest.mark.parametrize("antialias", [False, True])
def test_a_constant_stays_the_same_constant_on_every_grid(antialias):
  for target in range(1, 60):
    weights = positions.bicubic_matrix(16, target, antialias=antialias, extra=0.0)
    np.testing.assert_allclose(weights.sum(1), np.ones(target), atol=1e-6)


def test_rows_and_columns_are_not_swapped():
  rows = np.repeat(np.arange(4, dtype=np.float32), 4)[:, None]  # value = row number
  resized = positions.resize(rows, 4, 9, antialias=True).reshape(4, 9)
  np.testing.assert_allclose(
    resized, np.repeat(np.arange(4), 9).reshape(4, 9), atol=2e-6
  )
