"""Losses and what is right agree with NumPy in float64, for each task."""

import jax.numpy as jnp
import numpy as np

from dinojax.finetuning import tasks


def judged(task, scores, labels):
  """Loss and share that is right of a batch that is not mixed."""
  pairs = [(jnp.asarray(labels), jnp.ones(len(scores)))]
  return tasks.mean(tasks.TASKS[task], jnp.asarray(scores), pairs)


def test_images_without_a_label_have_no_loss():
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(6, 4))
  labels = np.array([0, 3, -1, 2, -1, 1])
  loss, top1 = judged("classes", scores, labels)
  known = labels >= 0
  picked = np.exp(scores[known])
  picked = picked[np.arange(4), labels[known]] / picked.sum(1)
  np.testing.assert_allclose(loss, -np.log(picked).mean(), 1e-5)
  np.testing.assert_allclose(top1, (scores.argmax(1) == labels)[known].mean())
  loss, top1 = judged("classes", np.ones((2, 4)), np.array([-1, -1]))
  assert (float(loss), float(top1)) == (0, 0)


def test_each_class_of_an_image_is_a_question_of_its_own():
  rng = np.random.default_rng(1)
  scores = 3 * rng.normal(size=(50, 2))
  sets = rng.integers(0, 2, (50, 2), np.uint8)
  loss, exact = judged("labels", scores, sets)
  chance = 1 / (1 + np.exp(-scores))
  wanted = -(sets * np.log(chance) + (1 - sets) * np.log(1 - chance))
  np.testing.assert_allclose(loss, wanted.mean(), 1e-5)
  np.testing.assert_allclose(exact, ((chance > 0.5) == sets).all(1).mean(), 1e-6)
  assert 0 < exact < 1


def test_a_patch_has_soft_labels_and_patches_without_one_have_no_loss():
  rng = np.random.default_rng(3)
  scores = rng.normal(size=(3, 4, 5))
  shares = rng.dirichlet(np.ones(5), (3, 4))
  shares[0, 1:], shares[2] = 0, 0  # the last image has no label at all
  loss, right = judged("segmentation", scores, shares)
  chance = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  known = shares.sum(-1) > 0
  wanted = -(shares * np.log(chance)).sum(-1)[known]
  np.testing.assert_allclose(loss, wanted.mean(), 1e-5)
  same = (scores.argmax(-1) == shares.argmax(-1))[known]
  np.testing.assert_allclose(right, same.mean(), 1e-6)


def test_the_loss_of_a_mixed_image_is_that_of_its_parts_by_their_shares():
  rng = np.random.default_rng(2)
  scores, labels = rng.normal(size=(4, 3)), np.array([0, 2, -1, 1])
  share = np.array([0.25, 1.0, 0.5, 0.0])
  pairs = [(labels, share), (labels[::-1], 1 - share)]
  loss, _ = tasks.mean(
    tasks.TASKS["classes"],
    jnp.asarray(scores),
    [(jnp.asarray(x), jnp.asarray(y)) for x, y in pairs],
  )
  nll = -np.log(np.exp(scores) / np.exp(scores).sum(1, keepdims=True))
  parts = [0.25 * nll[0, 0], 0.75 * nll[0, 1], nll[1, 2], 0.5 * nll[2, 2], nll[3, 0]]
  np.testing.assert_allclose(loss, sum(parts) / 3.5, 1e-5)
