"""Logistic regression: scikit-learn's, on normalised features, with a chosen C."""

import re

import numpy as np
import pytest
import threadpoolctl
from knn_test import bank_of, clusters, mesh_of
from sklearn import linear_model, preprocessing

from dinojax import errors
from dinojax.evals import logreg


def run(train, test, num_classes, shape=(1, 1)):
  mesh = mesh_of(*shape)
  banks = bank_of(mesh, *train), bank_of(mesh, *test)
  class_names = tuple(map(str, range(num_classes)))
  return logreg.logreg(*banks, class_names=class_names, seed=0)


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_it_evaluates_what_scikit_learn_fits_with_the_chosen_c(shape):
  rng = np.random.default_rng(0)
  train, test = clusters(rng, 300), clusters(rng, 200)
  train[1][[4, 70]] = -1  # unreadable
  found = run(train, test, 7, shape)
  assert found["logreg_c"] in logreg.STRENGTHS
  there = train[1] >= 0
  model = linear_model.LogisticRegression(C=found["logreg_c"], max_iter=5000, tol=1e-8)
  model.fit(preprocessing.normalize(train[0][there]), train[1][there])
  logits = model.decision_function(preprocessing.normalize(test[0]))
  ranked = np.argsort(-logits, axis=1)
  top1 = (ranked[:, 0] == test[1]).mean()
  top5 = (ranked[:, :5] == test[1][:, None]).any(1).mean()
  assert found["logreg_top1"] == pytest.approx(top1, abs=0.011)
  assert found["logreg_top5"] == pytest.approx(top5, abs=0.011)
  assert 0.3 < top1 < 0.95


def test_the_c_that_fits_best_held_out_is_found():
  # One informative direction among much noise: weak and strong priors both do worse.
  rng = np.random.default_rng(0)
  scores = {}
  train, test = clusters(rng, 400, width=40), clusters(rng, 2000, width=40)
  found = run(train, test, 7)
  x, queries = (preprocessing.normalize(x) for x in (train[0], test[0]))
  for strength in logreg.STRENGTHS[::3]:
    model = linear_model.LogisticRegression(C=strength, max_iter=5000).fit(x, train[1])
    scores[strength] = model.score(queries, test[1])
  assert found["logreg_top1"] > max(scores.values()) - 0.03
  assert found["logreg_top1"] > min(scores.values()) + 0.1


def test_small_values_of_c_that_differ_by_chance_do_not_end_the_search():
  # All of them fit the classes' means; what does better comes after a dip.
  rng, count, width = np.random.default_rng(18), 1500, 32
  labels = np.arange(count) % 10
  x = 8 + 0.3 * rng.normal(size=(10, width))[labels]
  x += 0.5 * rng.normal(size=(count, width))
  data = x.astype(np.float32), labels.astype(np.int32)
  assert run(data, data, 10)["logreg_c"] > 1


def test_two_classes_and_a_class_that_training_lacks():
  rng = np.random.default_rng(0)
  x, labels = clusters(rng, 200, num_classes=2)
  result = run((x, labels), (x, labels), 2)
  assert result["logreg_top1"] > 0.8 and result["logreg_top5"] == 1
  unknown = labels.copy()
  unknown[:100] = 2
  half = run((x, labels), (x, unknown), 3)
  assert half["logreg_top5"] == 0.5


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    ([1] * 20, "has those of one, 'dog'; give"),
    ([-1] * 20, "has those of one, 'none'; give"),
    ([0] * 19 + [1], "has one of class 'dog' (1 of 3 classes have one)"),
  ],
)
def test_too_few_classes_or_images_are_named(labels, message):
  with pytest.raises(errors.UserError, match=re.escape(message)):
    logreg.check(np.array(labels), class_names=("cat", "dog", "bird"))
  logreg.check(np.array([0, 0, 2, 2]), class_names=("cat", "dog", "bird"))


def test_values_of_c_beyond_the_first_that_does_not_converge_are_left_out(monkeypatch):
  rng = np.random.default_rng(0)
  train = clusters(rng, 200)
  fitted, fit = [], logreg._fit

  def watched(x, labels, strength, *, warm):
    fitted.append(strength)
    return fit(x, labels, strength, warm=warm)

  monkeypatch.setattr(logreg, "_fit", watched)
  monkeypatch.setattr(logreg, "ITERATIONS", 12)
  found = run(train, train, 7)
  *searched, last = fitted
  assert searched == list(logreg.STRENGTHS[: len(searched)])
  assert len(searched) < len(logreg.STRENGTHS)
  assert found["logreg_c"] == last in searched


def test_it_fits_in_float64_where_the_smallest_c_is_solved_too(monkeypatch):
  rng = np.random.default_rng(0)
  train = clusters(rng, 200)
  fit = logreg._fit

  def watched(x, labels, strength, *, warm):
    assert x.dtype == np.float64
    model, converged = fit(x, labels, strength, warm=warm)
    exact = linear_model.LogisticRegression(C=strength, max_iter=9999, tol=1e-9)
    np.testing.assert_array_equal(exact.fit(x, labels).predict(x), model.predict(x))
    return model, converged

  monkeypatch.setattr(logreg, "_fit", watched)
  monkeypatch.setattr(logreg, "STRENGTHS", (1e-6, 1e-3, 1.0))
  run(train, train, 7)


def test_small_products_take_one_thread_for_which_busy_machines_do_not_wait():
  def threads():
    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}

  before = threads()
  with logreg._threads_for(logreg.FLOPS_OF_ONE_THREAD):
    assert threads() == {1}
  with logreg._threads_for(2 * logreg.FLOPS_OF_ONE_THREAD):
    assert threads() == before


def test_each_c_is_solved_and_not_taken_over_from_the_one_before():
  rng = np.random.default_rng(0)
  labels = np.arange(4000) % 4
  x = 6 + rng.normal(size=(4, 24))[labels] * 0.1 + 0.4 * rng.normal(size=(4000, 24))
  x = preprocessing.normalize(x).astype(np.float32)
  warm = None
  for strength in (1.0, 10.0, 100.0):
    warm, converged = logreg._fit(x, labels, strength, warm=warm)
    assert converged
    exact = linear_model.LogisticRegression(C=strength, max_iter=5000, tol=1e-9)
    exact.fit(x.astype(np.float64), labels)
    off = np.linalg.norm(warm.coef_ - exact.coef_) / np.linalg.norm(exact.coef_)
    assert off < 0.02, strength
