"""Retrieval agrees with average precision by its definition, in float64."""

import knn_test
import numpy as np
import pytest

from dinojax import errors
from dinojax.evals import retrieval

KS = (1, 3, 50)


def oracle(x, labels, queries, own_labels, *, itself):
  """Row by row down each ranking."""
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
  precisions, recalls, left_out = [], [], 0
  for i, query in enumerate(queries):
    if own_labels[i] < 0:
      continue
    rows = np.flatnonzero((labels >= 0) & ~(itself & (np.arange(len(x)) == i)))
    ranked = labels[rows[np.argsort(-(x[rows] @ query), kind="stable")]]
    places = np.flatnonzero(ranked == own_labels[i])
    if not len(places):
      left_out += 1
      continue
    found = [(ranked[: place + 1] == own_labels[i]).mean() for place in places]
    precisions.append(np.mean(found))
    recalls.append([places[0] < k for k in KS])
  recalls = np.mean(recalls, axis=0)
  return {
    "retrieval_map": np.mean(precisions),
    **{f"retrieval_recall_at_{k}": r for k, r in zip(KS, recalls, strict=True)},
    "retrieval_left_out": left_out,
  }


def data(ties):
  rng = np.random.default_rng(0)
  x, labels = knn_test.clusters(rng, 203, width=16)
  queries, own_labels = knn_test.clusters(rng, 61, width=16)
  if ties:  # Vectors of quarters: similarities are exact, and have 17 values.
    x, queries = np.sign(x) / 4, np.sign(queries) / 4
  labels[[3, 50]] = own_labels[[5, 60]] = -1
  labels[70] = own_labels[9] = 7  # one of the gallery alone with its class
  own_labels[[1, 2]] = 8  # classes that the gallery lacks
  return x, labels, queries, own_labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize(("shape", "block"), [((1, 1), 5), ((2, 4), 16)])
def test_scores_are_those_of_the_definition_on_any_mesh(shape, block, itself, ties):
  x, labels, queries, own_labels = data(ties)
  mesh = knn_test.mesh_of(*shape)
  gallery = knn_test.bank_of(mesh, x, labels)
  others = None if itself else knn_test.bank_of(mesh, queries, own_labels)
  result = retrieval.retrieval(gallery, others, ks=KS, mesh=mesh, block=block)
  pair = (x, labels) if itself else (queries, own_labels)
  wanted = oracle(x, labels, *pair, itself=itself)
  assert result == pytest.approx(wanted, abs=1e-6)
  assert wanted["retrieval_left_out"] == (1 if itself else 2)
  assert wanted["retrieval_recall_at_1"] < 0.9


def test_average_precision_by_hand():
  # Cosines to the query rank classes 0 1 0 1 1: (1/1 + 2/3) / 2.
  x = np.array([[1.0, 0], [1, 1], [1, 2], [1, 3], [0, 1]])
  mesh = knn_test.mesh_of(1, 1)
  result = retrieval.retrieval(
    knn_test.bank_of(mesh, x, np.array([0, 1, 0, 1, 1])),
    knn_test.bank_of(mesh, x[:1], np.array([0])),
    ks=(1,),
    mesh=mesh,
    block=8,
  )
  assert result["retrieval_map"] == pytest.approx(5 / 6)


def test_features_that_are_not_finite_rank_last():
  x, mesh = np.array([[1.0, 0], [np.nan, 1], [0, 1], [-1, 0]]), knn_test.mesh_of(1, 1)
  gallery = knn_test.bank_of(mesh, x, np.array([0, 1, 0, 0]))
  query = knn_test.bank_of(mesh, x[:1], np.array([1]))
  result = retrieval.retrieval(gallery, query, ks=(3, 4), mesh=mesh, block=8)
  assert result["retrieval_map"] == 0.25
  assert result["retrieval_recall_at_3"] == 0
  assert result["retrieval_recall_at_4"] == 1


def test_recall_of_too_many_and_sets_without_a_match_are_named():
  labels = np.array([0, 1, -1, 2, 2])
  retrieval.check(labels, None, ks=(1, 4))
  with pytest.raises(errors.UserError, match=r"--recall=9,1 .* 4 labelled images .*"):
    retrieval.check(labels, None, ks=(9, 1))
  retrieval.check(labels, np.array([3, 2]), ks=(1,))
  for gallery, queries in ((labels[:4], None), (labels, np.array([3, -1]))):
    with pytest.raises(errors.UserError, match="retrieval finds nothing"):
      retrieval.check(gallery, queries, ks=(1,))
