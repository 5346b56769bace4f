"""The head of segmentation agrees with NumPy in float64, and its maps with bilinear."""

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.finetuning import patch_head


def test_scores_are_a_linear_layer_on_what_batch_norm_leaves():
  rng = np.random.default_rng(0)
  patches = 3 + 2 * rng.normal(size=(4, 9, 5)).astype(np.float32)
  head = {"kernel": rng.normal(size=(5, 3)), "bias": rng.normal(size=3)}
  norm = patch_head.batch_norm(jnp.asarray(patches))
  found = patch_head.scores(jax.tree.map(jnp.asarray, head), norm, patches)
  rows = np.float64(patches).reshape(-1, 5)
  normal = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
  wanted = (normal @ head["kernel"] + head["bias"]).reshape(4, 9, 3)
  np.testing.assert_allclose(found, wanted, 1e-4, 1e-5)


def test_label_maps_are_the_largest_of_bilinear_scores():
  rng = np.random.default_rng(1)
  scores = rng.normal(size=(2, 12, 4)).astype(np.float32)
  found = patch_head.label_maps(jnp.asarray(scores), (3, 4), (21, 28))
  wide = jax.image.resize(scores.reshape(2, 3, 4, 4), (2, 21, 28, 4), "linear")
  assert found.dtype == np.uint8
  assert (np.asarray(found) == np.asarray(wide).argmax(-1)).mean() > 0.999
