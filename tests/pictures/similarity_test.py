"""Similarities are cosines, to the nearest byte, and neighbours the true ones."""

import numpy as np
import pytest

from dinojax import errors
from dinojax.pictures import similarity


def test_bytes_are_the_cosines_of_each_pair_of_patches():
  tokens = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
  found = similarity.patch_bytes(tokens)
  assert found.shape == (20, 20) and found.dtype == np.uint8
  for i in range(20):
    for j in range(20):
      a, b = np.float64(tokens[i]), np.float64(tokens[j])
      cosine = a @ b / np.sqrt((a @ a) * (b @ b))
      assert abs(similarity.of_byte(found[i, j]) - cosine) <= 1 / 255 + 1e-12
  np.testing.assert_array_equal(np.diag(found), 255)
  np.testing.assert_array_equal(found, found.T)


def test_the_range_of_cosines_is_that_of_a_byte():
  assert similarity.to_byte(np.array([-1, -1.0001, 0, 1, 1.0001])).tolist() == (
    [0, 0, 128, 255, 255]
  )
  zeros = similarity.patch_bytes(np.zeros((2, 3)))  # no direction: similar to nothing
  np.testing.assert_array_equal(zeros, 128)


def test_neighbours_are_the_nearest_others_in_order():
  rng = np.random.default_rng(1)
  features = rng.normal(size=(50, 8)).astype(np.float32)
  queries = np.array([0, 7, 49])
  found, cosines = similarity.nearest(features, queries, 5)
  x = np.float64(features)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  for query, row, cosine in zip(queries, found, cosines, strict=True):
    expected = sorted((-x[query] @ x[i], i) for i in range(50) if i != query)[:5]
    assert row.tolist() == [i for _, i in expected]
    np.testing.assert_allclose(cosine, [-near for near, _ in expected])


def test_few_images_have_few_neighbours_and_copies_rank_by_their_number():
  features = np.ones((4, 2))
  found, _ = similarity.nearest(features, np.array([1]), 7)
  assert found.tolist() == [[0, 2, 3]]
  for count, queries in ((1, [0]), (3, [])):
    found, cosines = similarity.nearest(np.ones((count, 2)), np.array(queries), 7)
    assert found.size == cosines.size == 0


def test_neighbours_are_right_wrong_or_neither_without_a_label():
  labels = np.array([3, 3, 5, -1])
  found = np.array([[1, 2, 3], [0, 1, 2]])
  marks = similarity.marks(labels, np.array([0, 3]), found)
  assert marks.tolist() == [[1, -1, 0], [0, 0, 0]]


def test_features_that_are_not_finite_are_refused():
  bad = np.ones((3, 2))
  bad[2] = np.nan
  for call in (
    lambda: similarity.patch_bytes(bad),
    lambda: similarity.nearest(bad, np.array([0]), 1),
  ):
    with pytest.raises(errors.UserError, match="not finite"):
      call()
