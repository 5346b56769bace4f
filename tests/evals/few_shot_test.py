"""Few-shot k-NN draws the same images everywhere, and evaluates with them alone."""

import jax
import knn_test
import numpy as np
import pytest

from dinojax import errors
from dinojax.evals import few_shot

NAMES = tuple("abcdefg")
SETTINGS = dict(
  class_names=NAMES, shots=(1, 6), ks=(2, 5, 20), temperature=0.07, seed=3
)


def data():
  rng = np.random.default_rng(0)
  x, labels = knn_test.clusters(rng, 203)
  labels[[3, 50]] = -1
  return x, labels, *knn_test.clusters(rng, 61)


def test_accuracy_is_that_of_brute_force_on_the_drawn_images():
  x, labels, queries, wanted = data()
  mesh = knn_test.mesh_of(1, 1)  # as for k-NN on 8 devices: knn_test.py
  bank = knn_test.bank_of(mesh, x, labels)
  result = few_shot.few_shot(
    bank, knn_test.bank_of(mesh, queries, wanted), mesh=mesh, tries=3, **SETTINGS
  )
  padded = np.concatenate([labels, np.full(bank.labels.size - len(labels), -1)])
  expected = {}
  for n, ks in ((1, (1,)), (6, (2, 5, 6))):
    accuracies = []
    for attempt in range(3):
      rows = few_shot.draw(padded, num_classes=7, shots=n, seed=(3, n, attempt))
      accuracies.append(
        knn_test.oracle(
          x[rows], labels[rows], queries, wanted, num_classes=7, ks=ks, temperature=0.07
        )
      )
    for name in accuracies[0]:
      values = [accuracy[name] for accuracy in accuracies]
      expected[f"{name}_shots{n}"] = np.mean(values)
      expected[f"{name}_shots{n}_std"] = np.std(values, ddof=1)
  assert result == pytest.approx(expected, abs=1e-6)
  assert result["knn_top1_k5_shots6_std"] > 0
  assert {k for k in result if k.startswith("knn_top1") and "std" not in k} == {
    *("knn_top1_k1_shots1", "knn_top1_k2_shots6", "knn_top1_k5_shots6"),
    "knn_top1_k6_shots6",
  }


def test_a_draw_holds_n_different_images_of_each_class_and_depends_on_its_seed():
  labels = data()[1]
  draws = [
    few_shot.draw(labels, num_classes=7, shots=4, seed=seed)
    for seed in ((0, 4, 0), (0, 4, 0), (0, 4, 1), (1, 4, 0))
  ]
  for rows in draws:
    assert len(set(rows)) == 28
    np.testing.assert_array_equal(np.bincount(labels[rows]), np.full(7, 4))
  np.testing.assert_array_equal(draws[0], draws[1])
  assert (draws[0] != draws[2]).any()
  assert (draws[0] != draws[3]).any()


def test_taken_rows_keep_bits_labels_and_order_on_every_device():
  x, labels, *_ = data()
  mesh = knn_test.mesh_of(2, 4)
  bank = knn_test.bank_of(mesh, x, labels)
  rows = np.array([3, 5, 7, 8, 30, 31, 90, 91, 92, 93, 94, 95, 100, 140, 150, 199, 200])
  some = few_shot.select(bank, rows, mesh=mesh)
  assert some.features.sharding.shard_shape(some.features.shape) == (2, 2, 12)
  found = np.asarray(some.features).reshape(32, 12)
  np.testing.assert_array_equal(found[:17], x.astype(np.float32)[rows])
  found = jax.device_get(some.labels).ravel()
  np.testing.assert_array_equal(found, [*labels[rows], *[-1] * 15])


def test_a_class_with_too_few_images_is_named():
  labels = np.array([0, 1, 0, 1, -1, 0])
  few_shot.check(labels, class_names=("cat", "dog"), shots=(2,))
  with pytest.raises(errors.UserError) as raised:
    few_shot.check(labels, class_names=("cat", "dog"), shots=(1, 3))
  assert str(raised.value) == (
    "--shots=3 asks for more images than the 2 of class 'dog' in --train (1 of 2"
    " classes have fewer than 3); --shots=2 is the most, or give a --train with more"
    " images of each class"
  )
