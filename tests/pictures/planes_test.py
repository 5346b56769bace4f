"""A map keeps what is close together, fits its square, and says what is missing."""

import numpy as np
import pytest
from PIL import ImageColor

from dinojax import errors
from dinojax.pictures import planes


def clusters(count=60):
  """Two groups of features, and the group of each."""
  rng = np.random.default_rng(0)
  labels = np.arange(count) % 2
  centres = np.eye(2, 16) * 5
  return centres[labels] + rng.normal(size=(count, 16)) / 4, labels


def test_the_plane_is_of_the_directions_alone_and_parts_groups():
  features, labels = clusters()
  points = planes.pca(features)
  np.testing.assert_allclose(points, planes.pca(7 * features), atol=1e-12)
  first = points[:, 0]
  assert first[labels == 0].min() > first[labels == 1].max() or (
    first[labels == 0].max() < first[labels == 1].min()
  )


def test_places_fill_the_square_without_stretching_one_axis():
  steps = planes.to_steps(np.array([[0.0, 0.0], [4.0, 1.0], [2.0, 0.5]]))
  assert steps[:, 0].tolist() == [0, planes.STEPS, round(planes.STEPS / 2)]
  assert steps[1, 1] - steps[0, 1] == pytest.approx(planes.STEPS / 4, abs=1)
  assert abs(steps[2] - planes.STEPS / 2).max() <= 1
  middle = planes.to_steps(np.ones((2, 2)))
  assert abs(middle - planes.STEPS / 2).max() <= 1


@pytest.mark.parametrize("count", [0, 3, 10, 11, 1_000])
def test_classes_have_colours_of_their_own(count):
  colours = planes.colours(count)
  assert len(colours) == count
  assert len(set(colours)) >= 0.8 * count  # 1,000 are more than eyes tell apart
  assert all(len(ImageColor.getrgb(colour)) == 3 for colour in colours)


def test_a_drawing_has_a_dot_of_its_colour_for_each_image():
  points, labels = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), np.array([0, 1, -1])
  picture = planes.drawn(points, labels, ("cat", "dog"))
  for colour in (*planes.PALETTE[:2], "#68707a"):
    exact = (picture[: planes.SIDE] == ImageColor.getrgb(colour)).all(-1)
    assert exact.sum() > 20, colour
  unlabelled = planes.drawn(points, np.full(3, -1), ())
  assert unlabelled.shape == (planes.SIDE, planes.SIDE, 3)


def test_umap_says_what_it_needs(monkeypatch):
  with pytest.raises(errors.UserError, match="needs at least 16"):
    planes.umap(np.ones((3, 2)))
  monkeypatch.setattr(planes.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(errors.UserError, match=r"pip install -e '.\[umap\]'"):
    planes.umap(clusters()[0])
  with pytest.raises(errors.UserError, match="not finite"):
    planes.pca(np.full((3, 2), np.nan))


def test_umap_parts_groups():
  pytest.importorskip("umap", reason="umap-learn, of the extra [umap], is missing")
  features, labels = clusters()
  points = planes.umap(features)
  assert points.shape == (60, 2)
  far = np.linalg.norm(points[labels == 0].mean(0) - points[labels == 1].mean(0))
  assert far > points[labels == 0].std(0).max()
