"""Planes: image features in two dimensions, for a map of a set of images."""

import colorsys
import importlib.util

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from dinojax import errors
from dinojax.pictures import components, drawing, similarity

STEPS = 65_535  # coordinates are whole numbers from 0 to this: a point in 5 digits
LEAST_UMAP = 16  # images, of which UMAP has neighbours to arrange
# Of up to ten classes; each is seen on white and on black.
PALETTE = (
  *("#3b82c4", "#e07b1a", "#2f9e58", "#d1434f", "#8b63c6"),
  *("#a0693f", "#d965b0", "#7d8590", "#a8a11f", "#1fa6b8"),
)
GOLDEN = 0.618034  # of a turn between the hues of more classes
SIDE, NAMED, MOST_NAMED = 640, 5, 20  # pixels of a map; classes in a line, and named
MANY = 2_000  # images, from which on dots are small
FINE = 2  # dots are drawn so many times larger, then averaged


def pca(features: np.ndarray) -> np.ndarray:
  """[M, 2]: the first two principal components of features [M, D] at length 1.

  Raises:
    UserError: there is no image, or a feature is not finite.
  """
  components.check_finite(features, "image features")
  x = similarity.unit(features)
  return components.fit(x, 2).project(x)


def check_umap() -> None:
  """Raises UserError if the package of `umap` is missing; loads nothing."""
  if importlib.util.find_spec("umap") is None:
    raise errors.UserError(
      "--umap needs a package: pip install -e '.[umap]'; without it the map is PCA's"
    )


def umap(features: np.ndarray) -> np.ndarray:
  """[M, 2] by UMAP (arXiv:1802.03426), of cosine distances; seconds to minutes.

  Raises:
    UserError: the package is missing, there are too few images, or a feature is not
      finite.
  """
  components.check_finite(features, "image features")
  if len(features) < LEAST_UMAP:
    raise errors.UserError(
      f"UMAP of {len(features)} images; it needs at least {LEAST_UMAP}"
    )
  check_umap()
  import umap as umap_learn  # here, since it takes seconds to compile

  neighbours = min(15, len(features) - 1)
  reducer = umap_learn.UMAP(
    metric="cosine", n_neighbors=neighbours, random_state=0, n_jobs=1
  )
  return np.asarray(reducer.fit_transform(np.asarray(features, np.float32)))


def to_steps(points: np.ndarray) -> np.ndarray:
  """Points [M, 2] as whole numbers in 0..STEPS, by one factor for both axes, centred.

  Points of no extent are in the middle.
  """
  points = np.asarray(points, np.float64)
  low, high = points.min(0), points.max(0)
  extent = (high - low).max()
  centred = (points - (low + high) / 2) / (extent if extent > 0 else 1) + 0.5
  return np.rint(STEPS * centred).astype(int)


def colours(classes: int) -> list[str]:
  """A colour "#rrggbb" for each of so many classes, seen on light and on dark."""
  if classes <= len(PALETTE):
    return list(PALETTE[:classes])
  found = []
  for i in range(classes):  # neighbours in number far apart in hue
    hue = i * GOLDEN % 1
    rgb = colorsys.hls_to_rgb(hue, (0.45, 0.6)[i % 2], 0.65)
    found.append("#" + "".join(f"{round(255 * part):02x}" for part in rgb))
  return found


def drawn(points: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]):
  """The map as an image, with the classes below it.

  Args:
    points: [M, 2].
    labels: int [M]; below 0: none, drawn grey.
    classes: by label; () without labels.

  Returns:
    uint8 [H, W, 3].
  """
  names = colours(len(classes))
  palette = np.array([ImageColor.getrgb(name) for name in names] + [drawing.FAINT])
  radius = 2 if len(points) > MANY else 4
  margin = 2 * radius
  canvas = Image.new("RGB", (SIDE * FINE, SIDE * FINE), drawing.WHITE)
  pen = ImageDraw.Draw(canvas)
  places = to_steps(points) / STEPS * (SIDE - 2 * margin) + margin
  which = np.where((labels >= 0) & (labels < len(classes)), labels, len(classes))
  for (x, y), label in zip((FINE * places).tolist(), which.tolist(), strict=True):
    box = [x - radius * FINE, y - radius * FINE, x + radius * FINE, y + radius * FINE]
    pen.ellipse(box, tuple(palette[label].tolist()))
  image = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX))
  return np.concatenate([image, *_legend(names[:MOST_NAMED], classes)])


def _legend(names: list[str], classes: tuple[str, ...]) -> list[np.ndarray]:
  """Strips of the classes' colours and names, five in a line."""
  keys = []
  for colour, name in zip(names, classes, strict=False):
    key = drawing.caption(f"     {name}", SIDE // NAMED).copy()
    key[2:12, 2:12] = ImageColor.getrgb(colour)
    keys.append(key)
  empty = drawing.caption("", SIDE // NAMED)
  keys += [empty] * (-len(keys) % NAMED)
  return [
    np.concatenate(keys[i : i + NAMED], axis=1) for i in range(0, len(keys), NAMED)
  ]
