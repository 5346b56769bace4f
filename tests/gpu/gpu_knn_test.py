"""k-NN on the device counts what NumPy counts in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from dinojax import sharding
from dinojax.evals import features, knn

CLASSES, K, TEMPERATURE = 10, 20, 0.07


def draw(rng, centres, rows, batch=100):
  """Rows around the centres of their classes, in batches; a tenth is not labelled."""
  labels = rng.integers(CLASSES, size=rows)
  x = centres[labels] + 3 * rng.normal(size=(rows, centres.shape[1]))
  labels[rng.random(rows) < 0.1] = -1
  return x.astype(np.float32), labels.astype(np.int32)


def test_accuracy_is_that_of_numpy(device):
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(CLASSES, 48))
  train, test = draw(rng, centres, 2_000), draw(rng, centres, 500)
  mesh = sharding.make_mesh(data=1, fsdp=1, devices=[device])
  with jax.set_mesh(mesh):
    bank, queries = (
      features.Bank(
        jax.device_put(jnp.reshape(x, (-1, 100, 48)), device),
        jax.device_put(jnp.reshape(labels, (-1, 100)), device),
      )
      for x, labels in (train, test)
    )
    found = knn.knn(
      bank, queries, num_classes=CLASSES, ks=[K], temperature=TEMPERATURE, mesh=mesh
    )
  right, counted = 0, 0
  x = np.float64(train[0][train[1] >= 0])
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  for query, label in zip(*test, strict=True):
    if label < 0:
      continue
    similarity = x @ np.float64(query) / np.linalg.norm(np.float64(query))
    nearest = np.argsort(-similarity)[:K]
    votes = np.bincount(
      train[1][train[1] >= 0][nearest],
      np.exp(similarity[nearest] / TEMPERATURE),
      minlength=CLASSES,
    )
    right, counted = right + (votes.argmax() == label), counted + 1
  # A GPU may round similarities so that a neighbour or two change places.
  assert abs(found[f"knn_top1_k{K}"] - right / counted) <= 2 / counted
