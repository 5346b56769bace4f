"""Principal components (PCA) of patch tokens: as colours, and as a foreground mask.

Pure functions of arrays, in float64. Dimension key: M rows (patches of one image, or of
several), D width, C components.
"""

from typing import NamedTuple

import numpy as np

from dinojax import errors

SPREAD = (
  1,
  99,
)  # percentiles that become 0 and 255, so that no outlier takes the range
BINS = 256  # of the histogram whose two classes are foreground and background
LEAST_FOREGROUND = 8  # patches; the components of fewer say nothing


class Components(NamedTuple):
  """mean [D]; axes [C, D], unit rows by falling variance; shares [C] of the variance.

  Of fewer rows or channels than C, the last axes are 0. An axis points to where its
  largest coordinate is positive.
  """

  mean: np.ndarray
  axes: np.ndarray
  shares: np.ndarray

  def project(self, rows: np.ndarray) -> np.ndarray:
    """Coordinates [..., C] of rows [..., D]."""
    return (np.asarray(rows, np.float64) - self.mean) @ self.axes.T


def check_finite(rows: np.ndarray, what: str) -> None:
  """Raises UserError if an array [M, ...] holds NaN or infinity, with the first row."""
  bad = ~np.isfinite(rows).reshape(len(rows), -1).all(1)
  if bad.any():
    raise errors.UserError(
      f"{what}: {int(bad.sum()):,} of {len(rows):,} are not finite (NaN or infinite),"
      f" the first is number {int(bad.argmax())}; check the weights, or try"
      " --dtype=float32"
    )


def fit(rows: np.ndarray, count: int) -> Components:
  """The first principal components of rows.

  Args:
    rows: [M, D], M at least 1.
    count: C.

  Raises:
    UserError: there is no row, or one is not finite.
  """
  if not len(rows):
    raise errors.UserError("principal components of no rows; give at least one image")
  check_finite(rows, "features")
  x = np.asarray(rows, np.float64)
  mean = x.mean(0)
  x = x - mean
  wide = x.shape[1] > len(x)  # then the Gram matrix is the smaller one
  values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
  order = np.argsort(values)[::-1][:count]
  values = np.maximum(values[order], 0)
  total = np.square(x).sum()
  # Below rounding errors an eigenvector is any vector.
  sound = values > max(x.shape) * np.finfo(np.float64).eps * max(total, 1e-300)
  axes = (x.T @ vectors[:, order] if wide else vectors[:, order]).T
  norms = np.linalg.norm(axes, axis=1)
  axes = np.where(sound[:, None], axes / np.where(sound, norms, 1)[:, None], 0)
  largest = np.take_along_axis(axes, abs(axes).argmax(1)[:, None], 1)
  axes = np.where(largest < 0, -axes, axes)
  missing = count - len(order)
  return Components(
    mean,
    np.pad(axes, [[0, missing], [0, 0]]),
    np.pad(np.where(sound, values, 0) / max(total, 1e-300), [0, missing]),
  )


def to_bytes(coordinates: np.ndarray, inside: np.ndarray | None = None) -> np.ndarray:
  """Each column stretched to 0..255, between its percentiles SPREAD.

  Args:
    coordinates: [M, C].
    inside: bool [M], the rows that set the range; None: all.

  Returns:
    uint8 [M, C]; a column without any range is 128.
  """
  seen = coordinates if inside is None else coordinates[inside]
  low, high = np.percentile(seen, SPREAD, axis=0)
  flat = high - low <= 1e-9 * np.maximum(abs(high), abs(low)) + 1e-300
  scaled = (coordinates - low) / np.where(flat, 1, high - low)
  return np.where(flat, 128, np.rint(255 * np.clip(scaled, 0, 1))).astype(np.uint8)


def threshold(values: np.ndarray) -> float:
  """Where two classes of values [M] part best: Otsu's, of the largest variance between.

  Source: Otsu 1979, doi:10.1109/TSMC.1979.4310076.
  """
  counts, edges = np.histogram(values, BINS)
  centres = (edges[1:] + edges[:-1]) / 2
  below = np.cumsum(counts)
  above = below[-1] - below
  sums = np.cumsum(counts * centres)
  mean_below = sums / np.maximum(below, 1)
  mean_above = (sums[-1] - sums) / np.maximum(above, 1)
  between = below * above * np.square(mean_below - mean_above)
  best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
  return float(edges[1 + best[len(best) // 2]])  # in the middle of an empty range


def foreground(first: np.ndarray) -> np.ndarray:
  """Which patches are foreground, by the first component.

  Otsu's threshold parts the patches of all images. The side that has the smaller part
  of the patches at the images' borders is the foreground: PCA leaves the sign open, and
  photographers put things in the middle.

  Args:
    first: [I, h, w], the first component of patches of I images.

  Returns:
    bool [I, h, w].
  """
  above = first > threshold(first.ravel())
  border = np.ones(first.shape[1:], bool)
  border[1:-1, 1:-1] = False
  inner, outer = above[:, ~border], above[:, border]
  if not inner.size:
    return above
  return above if outer.mean() <= inner.mean() else ~above


def colours(tokens: np.ndarray) -> dict[str, np.ndarray]:
  """Pictures of the patch tokens of I images.

  Args:
    tokens: [I, h, w, D].

  Returns:
    uint8 [I, h, w, 3] each: "own", components 1 to 3 of each image by itself as red,
    green and blue; "joint", of all images together; "foreground", components of the
    foreground alone, of all images together, and black elsewhere. Bool [I, h, w]:
    "mask", the foreground.

  Raises:
    UserError: there is no image, or a token is not finite.
  """
  count, height, width, channels = tokens.shape
  rows = tokens.reshape(count, height * width, channels)
  shape = (count, height, width, 3)
  check_finite(rows, "patch tokens of images")
  own = [to_bytes(fit(image, 3).project(image)) for image in rows]
  flat = rows.reshape(-1, channels)
  joint = fit(flat, 3).project(flat)
  mask = foreground(joint[:, 0].reshape(shape[:3]))
  inside = mask.ravel()
  if inside.sum() < LEAST_FOREGROUND:
    inside = np.ones_like(inside)
  coloured = to_bytes(fit(flat[inside], 3).project(flat), inside)
  return {
    "own": np.stack(own).reshape(shape),
    "joint": to_bytes(joint).reshape(shape),
    "foreground": np.where(inside[:, None], coloured, 0)
    .astype(np.uint8)
    .reshape(shape),
    "mask": inside.reshape(shape[:3]),
  }
