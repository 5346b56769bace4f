"""L2-regularised logistic regression on frozen features, by scikit-learn."""

import contextlib
import copy
import logging
import warnings

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from dinojax import errors
from dinojax.evals import features, labelled

# DIFFERS: DINOv2 tries 45 values in the same range; accuracy is flat between powers. It
# also tries those where the solver no longer converges, which take most of the time.
STRENGTHS = tuple(10.0**power for power in range(-6, 6))
HELD_OUT = 0.1  # of the training images, to choose C on
ITERATIONS = 1_000  # at most, for each C: this bounds the time
# Of the gradient. At scikit-learn's own, 1e-4, the solution for one C passes for one of
# a C 10 times larger, since features of length 1 have small gradients.
TOLERANCE = 1e-6
# FLOPs of a matrix product below which one thread is faster: threads that wait for each
# other on a busy machine took 100 times as long.
FLOPS_OF_ONE_THREAD = 1e9


def logreg(
  train: features.Bank,
  test: features.Bank,
  *,
  class_names: tuple[str, ...],
  seed: int,
) -> dict:
  """Fits a classifier on `train` and evaluates it on `test`.

  Features are L2-normalised, as in DINOv2's evaluation. C is chosen on a tenth of
  `train`, held out by class, from the smallest value to the first that does not
  converge; then all is fitted. Every host holds all features in memory, 8 * D bytes an
  image, and with several hosts every device half of that for a moment; each host fits
  them for itself.

  Args:
    train: features and labels to fit.
    test: to evaluate on.
    class_names: by label.
    seed: of what is held out.

  Returns:
    logreg_top1, logreg_top5 (shares within 0..1), logreg_c.

  Raises:
    UserError: as of `check`.
  """
  from sklearn import model_selection  # Here: it costs a second of every command.

  x, labels = _rows(train)
  check(labels, class_names=class_names)
  test_x, wanted = _rows(test)
  held_out = max(HELD_OUT, len(np.unique(labels)) / len(labels))
  fit_x, val_x, fit_labels, val_labels = model_selection.train_test_split(
    x, labels, test_size=held_out, stratify=labels, random_state=seed
  )
  model, best, top = None, None, -1.0
  with _threads_for(2 * x.size * len(class_names)):
    for strength in tqdm.tqdm(
      STRENGTHS,
      desc="logistic regression",
      unit="C",
      leave=False,
      disable=None if jax.process_index() == 0 else True,  # None: unless no terminal
    ):
      model, converged = _fit(fit_x, fit_labels, strength, warm=model)
      if (score := model.score(val_x, val_labels)) > top:
        best, top = copy.deepcopy(model), score
      if not converged:
        logging.info("logreg: larger C than %g are left out", strength)
        break
    model, _ = _fit(x, labels, best.C, warm=best)
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
    "logreg_c": model.C,
  }


def check(labels: np.ndarray, *, class_names: tuple[str, ...]) -> None:
  """Raises UserError unless there are two classes, and two images of each.

  Args:
    labels: of the training images, int [...], negative for none.
    class_names: by label.
  """
  counts = labelled.count(labels, class_names)
  if (counts > 0).sum() < 2:
    only = class_names[int(counts.argmax())] if counts.any() else "none"
    raise errors.UserError(
      f"logreg needs images of two classes, and --train has those of one, {only!r};"
      " give another --train, or leave logreg out of --tasks"
    )
  if (single := counts == 1).any():
    raise errors.UserError(
      f"logreg needs two images of each class, and --train has one of class"
      f" {class_names[int(single.argmax())]!r} ({single.sum()} of {len(counts)} classes"
      " have one); add images, or leave logreg out of --tasks"
    )


def _threads_for(flops: float) -> contextlib.AbstractContextManager:
  """Limits BLAS and OpenMP to one thread for small matrix products."""
  import threadpoolctl  # Here: it comes with scikit-learn.

  if flops > FLOPS_OF_ONE_THREAD:
    return contextlib.nullcontext()
  return threadpoolctl.threadpool_limits(limits=1)


def _fit(x, labels, strength, *, warm):
  """(model, whether it converged) of C = strength, from the solution of another C."""
  from sklearn import exceptions, linear_model

  model = warm or linear_model.LogisticRegression(
    max_iter=ITERATIONS, tol=TOLERANCE, warm_start=True
  )
  model.C = strength
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", exceptions.ConvergenceWarning)
    model.fit(x, labels)
  return model, not caught


def _rows(bank: features.Bank) -> tuple[np.ndarray, np.ndarray]:
  """Normalised features [N, D], float64, and labels [N] of the labelled rows.

  In float32 the solver stops too early for the smallest C, elsewhere each time it
  is called: such a classifier may win the choice of C, and be lost in the last fit.
  """
  bank = multihost_utils.process_allgather(bank, tiled=True)
  labels = np.asarray(bank.labels).ravel()
  x = np.float64(bank.features).reshape(len(labels), -1)[labels >= 0]
  length = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  return x / length, labels[labels >= 0]
