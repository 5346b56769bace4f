"""Logistic regression on patches agrees with scikit-learn's, on any mesh."""

import blocks
import numpy as np
import pytest
from absl import flags
from scipy import special
from sklearn import linear_model

from dinojax import errors
from dinojax.evals import logreg_segmentation


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # Grain's


def rows(memory):
  """Standardised patches and their classes, in float64, of labelled patches."""
  known = np.asarray(memory.bank.labels).ravel() >= 0
  x = np.float64(memory.bank.features).reshape(len(known), -1)[known]
  labels = np.asarray(memory.shares).reshape(len(known), -1)[known].argmax(1)
  return (x - x.mean(0)) / x.std(0), labels


@pytest.mark.parametrize(("shape", "strength"), [((1, 1), 1.0), ((2, 4), 1e-3)])
def test_weights_equal_scikit_learns_on_any_mesh(shape, strength):
  memory, mesh = blocks.remember(most=10_000, shape=shape), blocks.reader(shape).mesh
  known = memory.bank.labels >= 0
  norm = logreg_segmentation.statistics(memory)
  first = logreg_segmentation.Weights(
    np.zeros((12, blocks.CLASSES), np.float32), np.zeros(blocks.CLASSES, np.float32)
  )
  found = logreg_segmentation.fit(memory, known, norm, first, strength, mesh=mesh)
  x, labels = rows(memory)
  wanted = linear_model.LogisticRegression(C=strength, tol=1e-9, max_iter=5_000)
  wanted.fit(x, labels)
  assert wanted.classes_.tolist() == [0, 1, 2, 3]
  np.testing.assert_allclose(
    found.kernel[:, :4].T, wanted.coef_, atol=2e-3 * np.abs(wanted.coef_).max() + 2e-4
  )
  assert np.abs(found.kernel[:, 4]).max() < np.abs(wanted.coef_).max()  # no such patch
  own = special.softmax(x @ found.kernel + found.bias, axis=1)[:, :4]
  np.testing.assert_allclose(own, wanted.predict_proba(x), atol=5e-3)


def evaluate(memory, test):
  found = logreg_segmentation.logreg_segmentation(
    blocks.reader((1, 1)), memory, test, class_names=blocks.NAMES, seed=0
  )
  return {k.removeprefix("logreg_segmentation_"): x for k, x in found.items()}


def test_a_strength_is_chosen_and_colours_tell_classes(monkeypatch):
  strengths = logreg_segmentation.STRENGTHS[::3]
  monkeypatch.setattr(logreg_segmentation, "STRENGTHS", strengths)
  memory = blocks.remember(most=10_000, shape=(1, 1), broken=(4,))
  found = evaluate(memory, blocks.Blocks(11, 1))
  assert found["c"] in strengths[1:]
  assert found["miou"] > 0.3 and found["iou"]["e"] is None
  assert found["patches"] == int((memory.bank.labels >= 0).sum())


def test_a_tenth_of_the_images_is_held_out_with_all_their_patches():
  memory, mesh = blocks.remember(most=63, broken=(4,)), blocks.reader().mesh
  fitted, out = map(np.asarray, logreg_segmentation._split(memory, mesh, 0))
  assert memory.of_image == 3 and not (fitted & out).any()
  images = [set(np.flatnonzero(x.ravel()) // 3) for x in (fitted, out)]
  assert len(images[1]) == 2 and not images[0] & images[1]
  assert images[0] | images[1] == set(range(21)) - {4}


def test_a_single_class_or_image_is_one_line():
  memory = blocks.remember(1, most=10_000, shape=(1, 1))
  with pytest.raises(errors.UserError, match="needs 2 images and 2 classes, and --tra"):
    evaluate(memory, blocks.Blocks(1, 1))
