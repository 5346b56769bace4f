"""L2-regularised logistic regression on frozen features, by scikit-learn."""

import logging
import warnings

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from dinojax import errors
from dinojax.evals import features

# DIFFERS: DINOv2 tries 45 values in the same range; accuracy is flat between powers.
STRENGTHS = tuple(10.0**power for power in range(-6, 6))
HELD_OUT = 0.1  # of the training images, to choose C on
ITERATIONS = 1_000
# Of the gradient. At scikit-learn's own, 1e-4, the solution for one C passes for one of
# a C 10 times larger, since features of length 1 have small gradients.
TOLERANCE = 1e-6


def logreg(
  train: features.Bank, test: features.Bank, *, num_classes: int, seed: int
) -> dict:
  """Fits a classifier on `train` and rates it on `test`.

  Features are L2-normalised, as in DINOv2's evaluation. C is chosen on a tenth of
  `train`, held out by class; then all is fitted. Every host holds all features in
  memory, and with several hosts every device for a moment, 4 * D bytes an image; each
  host fits them for itself.

  Args:
    train: features and labels to fit.
    test: to rate.
    num_classes: C of the labels.
    seed: of what is held out.

  Returns:
    logreg_top1, logreg_top5 (shares within 0..1), logreg_c.

  Raises:
    UserError: fewer than two classes, or a class of a single image, in `train`; no
      labelled row in `test`; a feature that is not finite.
  """
  from sklearn import model_selection  # Here: it costs a second of every command.

  x, labels = _rows(train)
  counts = np.bincount(labels, minlength=num_classes)
  if (counts > 0).sum() < 2 or counts[counts > 0].min() < 2:
    raise errors.UserError(
      "--train must hold at least two classes, and two readable images of each, for"
      " logreg"
    )
  test_x, wanted = _rows(test)
  # Before the fits, which take minutes.
  if not len(wanted):
    raise errors.UserError("--test has no readable labelled image to rate logreg on")
  for name, rows in (("train", x), ("test", test_x)):
    bad = int((~np.isfinite(rows).all(1)).sum())
    if bad:
      raise errors.UserError(
        f"--{name}: the features of {bad} of {len(rows)} images are not finite, which"
        " logreg cannot fit; check the checkpoint, or leave logreg out of --tasks"
      )
  held_out = max(HELD_OUT, (counts > 0).sum() / len(labels))
  fit_x, val_x, fit_labels, val_labels = model_selection.train_test_split(
    x, labels, test_size=held_out, stratify=labels, random_state=seed
  )
  scores = []
  model = None
  for strength in tqdm.tqdm(
    STRENGTHS,
    desc="logistic regression",
    unit="C",
    leave=False,
    disable=None if jax.process_index() == 0 else True,  # None: unless no terminal
  ):
    model = _fit(fit_x, fit_labels, strength, warm=model)
    scores.append(model.score(val_x, val_labels))
  best = STRENGTHS[int(np.argmax(scores))]
  model = _fit(x, labels, best, warm=None)
  logits = model.decision_function(test_x)
  if logits.ndim == 1:  # of two classes, only the second one's
    logits = np.stack([-logits, logits], axis=1)
  place = np.searchsorted(model.classes_, wanted).clip(max=len(model.classes_) - 1)
  known = model.classes_[place] == wanted
  own = np.take_along_axis(logits, place[:, None], axis=1)
  rank = (logits > own).sum(1)
  return {
    "logreg_top1": float((known & (rank < 1)).mean()),
    "logreg_top5": float((known & (rank < 5)).mean()),
    "logreg_c": best,
  }


def _fit(x, labels, strength, *, warm):
  """Fits with C = strength, starting from the solution of another C."""
  from sklearn import exceptions, linear_model

  model = warm or linear_model.LogisticRegression(
    max_iter=ITERATIONS, tol=TOLERANCE, warm_start=True
  )
  model.C = strength
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", exceptions.ConvergenceWarning)
    model.fit(x, labels)
  if caught:
    logging.warning(
      "logistic regression, C=%g: not converged after %d iterations; used as it is",
      *(strength, ITERATIONS),
    )
  return model


def _rows(bank: features.Bank) -> tuple[np.ndarray, np.ndarray]:
  """Normalised features [N, D] and labels [N] of the labelled rows."""
  bank = multihost_utils.process_allgather(bank, tiled=True)
  labels = np.asarray(bank.labels).ravel()
  x = np.asarray(bank.features).reshape(len(labels), -1)[labels >= 0]
  length = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  return x / length, labels[labels >= 0]
