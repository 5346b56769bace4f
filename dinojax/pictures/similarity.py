"""Similarity of features by their cosine: of the patches of an image, and of images.

Pure functions of arrays, in float64. Dimension key: N patches, M images, D width.
"""

import numpy as np

from dinojax.pictures import components

ROWS = 1_024  # of similarities that are computed at a time


def unit(rows: np.ndarray) -> np.ndarray:
  """Rows [M, D] at length 1, float64; a row of zeros stays."""
  x = np.asarray(rows, np.float64)
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-300)


def patch_bytes(tokens: np.ndarray) -> np.ndarray:
  """Cosine similarity of each patch of an image with each, as bytes.

  Args:
    tokens: [N, D].

  Returns:
    uint8 [N, N]: `to_byte` of the cosines.

  Raises:
    UserError: a token is not finite.
  """
  components.check_finite(tokens, "patch tokens of an image")
  x = unit(tokens)
  return to_byte(x @ x.T)


def to_byte(cosine: np.ndarray) -> np.ndarray:
  """0 to 255 of cosines from -1 to 1, to the nearest: an error of at most 1/255."""
  return np.rint((np.clip(cosine, -1, 1) + 1) * 127.5).astype(np.uint8)


def of_byte(value: np.ndarray) -> np.ndarray:
  """The cosines of `to_byte`."""
  return np.asarray(value, np.float64) / 127.5 - 1


def nearest(
  features: np.ndarray, queries: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """The nearest other images of some images.

  Args:
    features: [M, D].
    queries: int [Q], numbers of images.
    count: neighbours of each; at most M - 1 are found.

  Returns:
    Numbers of images int [Q, k] from the nearest on, and their cosines [Q, k]. Of equal
    cosines the smaller number comes first.

  Raises:
    UserError: a feature is not finite.
  """
  components.check_finite(features, "image features")
  x = unit(features)
  count = min(count, len(x) - 1)
  found, cosines = [], []
  for start in range(0, len(queries), ROWS):
    some = np.asarray(queries[start : start + ROWS], int)
    near = x[some] @ x.T
    near[np.arange(len(some)), some] = -np.inf  # not itself
    order = np.argsort(-near, axis=1, kind="stable")[:, :count]
    found.append(order)
    cosines.append(np.take_along_axis(near, order, 1))
  if not found:
    return np.zeros((0, count), int), np.zeros((0, count))
  return np.concatenate(found), np.concatenate(cosines)


def marks(labels: np.ndarray, queries: np.ndarray, found: np.ndarray) -> np.ndarray:
  """Whether neighbours have the label of their query.

  Args:
    labels: int [M]; below 0: none.
    queries: int [Q].
    found: int [Q, k], of `nearest`.

  Returns:
    int8 [Q, k]: 1 right, -1 wrong, 0 where one of the two has no label.
  """
  query, neighbour = labels[queries][:, None], labels[found]
  mark = np.where(query == neighbour, 1, -1)
  return np.where((query < 0) | (neighbour < 0), 0, mark).astype(np.int8)
