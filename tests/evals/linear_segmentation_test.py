"""Linear segmentation agrees with AdamW in float64, on any mesh."""

import blocks
import jax
import numpy as np
import pytest
from absl import flags

from dinojax import errors
from dinojax.evals import linear, linear_segmentation

STEPS, BATCH, SEED = 30, 64, 3


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # Grain's


@pytest.fixture(scope="module")
def fitted():
  """Memory, norm and heads by mesh."""
  found = {}
  for shape in ((1, 1), (2, 4)):
    memory = blocks.remember(most=65, shape=shape, broken=(4,))
    norm = linear_segmentation.statistics(memory)
    settings = dict(steps=STEPS, batch_size=BATCH, seed=SEED)
    mesh = blocks.reader(shape).mesh
    heads = linear_segmentation.fit(memory, norm, mesh=mesh, **settings)
    found[shape] = jax.device_get((memory, norm, heads))
  return found


def oracle(memory):
  """All heads after STEPS of AdamW, written out in float64."""
  x = memory.bank.features.reshape(-1, 12).astype(np.float64)
  shares = memory.shares.reshape(-1, blocks.CLASSES).astype(np.float64)
  known = x[memory.bank.labels.ravel() >= 0]
  x = (x - known.mean(0)) / np.sqrt(known.var(0) + 1e-5)
  key = jax.random.key(SEED)
  first = 0.01 * np.asarray(jax.random.normal(key, (12, blocks.CLASSES)), np.float64)
  heads = []
  for peak in linear_segmentation.RATES:
    weights = [first.copy(), np.zeros(blocks.CLASSES)]
    m, v = ([np.zeros_like(w) for w in weights] for _ in range(2))
    order = linear.order(memory.bank.labels, seed=SEED, batch_size=BATCH)
    for t in range(STEPS):
      rows = next(order)
      kept = jax.random.bernoulli(jax.random.fold_in(key, t), 0.9, (BATCH, 12))
      inputs = x[rows] * np.asarray(kept) / 0.9
      logits = inputs @ weights[0] + weights[1]
      p = np.exp(logits - logits.max(1, keepdims=True))
      error = (p / p.sum(1, keepdims=True) - shares[rows]) / BATCH
      warmup = STEPS * 1500 / 40000
      rate = peak * (1 + np.cos(np.pi * (t + 1) / STEPS)) / 2
      if t < warmup:
        rate = peak * (1 - (1 - t / warmup) * (1 - 1e-6)) * (1 - t / STEPS)
      for i, grad in enumerate((inputs.T @ error, error.sum(0))):
        m[i] = 0.9 * m[i] + 0.1 * grad
        v[i] = 0.999 * v[i] + 0.001 * grad**2
        step = m[i] / (1 - 0.9 ** (t + 1))
        step /= np.sqrt(v[i] / (1 - 0.999 ** (t + 1))) + 1e-8
        weights[i] = weights[i] - rate * (step + 1e-3 * weights[i])
    heads.append(weights)
  return heads


def test_all_heads_equal_adamw_in_float64(fitted):
  memory, _, heads = fitted[1, 1]
  for i, (kernel, bias) in enumerate(oracle(memory)):
    np.testing.assert_allclose(heads.kernel[i], kernel, rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(heads.bias[i], bias, rtol=2e-3, atol=2e-5)
  assert np.abs(heads.kernel[-1]).max() > 3 * np.abs(heads.kernel[0]).max()


def test_eight_devices_train_the_heads_of_one(fitted):
  for one, eight in zip(*map(jax.tree.leaves, fitted.values()), strict=True):
    np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-6)


def test_logits_are_those_of_each_head(fitted):
  _, norm, heads = fitted[1, 1]
  x = np.random.default_rng(0).normal(size=(2, 16, 12)).astype(np.float32)
  found = linear_segmentation.logits((heads, norm), x)
  for i in range(len(linear_segmentation.RATES)):
    own = (x - norm.mean) * norm.scale @ heads.kernel[i] + heads.bias[i]
    np.testing.assert_allclose(found[:, :, i], own, rtol=1e-4, atol=1e-5)


def evaluate(**evaluated):
  reader = blocks.reader()
  memory = blocks.remember(most=10_000)
  settings = dict(steps=60, batch_size=BATCH, seed=SEED)
  found = linear_segmentation.linear_segmentation(
    reader, memory, evaluated, class_names=blocks.NAMES, **settings
  )
  return {k.removeprefix("linear_segmentation_"): x for k, x in found.items()}


def test_the_best_head_on_val_is_evaluated_on_test_or_the_best_on_test():
  test, val = blocks.Blocks(11, 1), blocks.Blocks(9, 2)
  on_test, on_val = evaluate(test=test), evaluate(test=test, val=val)
  assert (on_test["chosen_on"], on_val["chosen_on"]) == ("test", "val")
  for found in (on_test, on_val):
    grid = found["grid"]
    assert list(grid) == ["lr0.0001", "lr0.0003", "lr0.001", "lr0.003", "lr0.01"]
    assert found["head"] == max(grid, key=grid.get)
  assert on_test["miou"] == on_test["grid"][on_test["head"]]
  assert on_test["grid"] != on_val["grid"]
  assert on_test["miou"] > on_test["grid"]["lr0.0001"] + 0.05
  # Colours tell the classes, but for noise, and 60 steps are few.
  assert on_test["miou"] > 0.3 and on_test["iou"]["e"] is None


def test_a_memory_of_nothing_is_one_line():
  memory = blocks.remember(most=65)
  nothing = memory.replace(bank=memory.bank.replace(labels=memory.bank.labels * 0 - 1))
  settings = dict(steps=1, batch_size=64, seed=0)
  with pytest.raises(errors.UserError, match="--train has no readable image with a la"):
    linear_segmentation.linear_segmentation(
      blocks.reader(), nothing, {}, class_names=blocks.NAMES, **settings
    )


def test_the_rate_rises_and_falls_as_dinov3s():
  rate = linear_segmentation.rate(40_000)
  steps = [0, 750, 1_500, 20_000, 39_999]
  wanted = [1e-6, 0.5 * (1 - 750 / 40_000), 0.99653, 0.49996, 0]
  np.testing.assert_allclose([rate(t) for t in steps], wanted, atol=1e-5)
