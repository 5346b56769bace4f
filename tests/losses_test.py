"""Loss formulas beside float64 NumPy written out from the papers, loop by loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax import losses

sinkhorn_knopp = jax.jit(losses.sinkhorn_knopp, static_argnames="iterations")
cross_entropy, koleo = jax.jit(losses.cross_entropy), jax.jit(losses.koleo)


def normal(*shape, seed=0, scale=1.0):
  return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def sinkhorn_oracle(logits, temp, iterations=3):
  q = np.exp((logits.astype(np.float64) - logits.max()) / temp)  # [rows, K]
  q /= q.sum()
  for _ in range(iterations):
    for k in range(q.shape[1]):
      q[:, k] /= q[:, k].sum() * q.shape[1]
    for row in range(len(q)):
      q[row] /= q[row].sum() * len(q)
  return q * len(q)


def softmax_oracle(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def cross_entropy_oracle(logits, targets, temp):
  z = logits.astype(np.float64) / temp
  out = np.zeros(z.shape[:-1])
  for i in np.ndindex(*z.shape[:-1]):
    for k in range(z.shape[-1]):
      out[i] -= float(targets[(*i, k)]) * np.log(softmax_oracle(z[i])[k])
  return out


def koleo_oracle(features, eps=1e-8):
  terms = []
  for group in features.astype(np.float64):
    unit = [x / max(np.linalg.norm(x), eps) for x in group]
    for i, x in enumerate(unit):
      others = [y for j, y in enumerate(unit) if j != i]
      nearest = min(others, key=lambda y: np.linalg.norm(x - y))
      terms.append(-np.log(np.linalg.norm(x - nearest + eps) + eps))
  return np.mean(terms)


@pytest.mark.parametrize("temp", [0.04, 0.07])
@pytest.mark.parametrize("scale", [0.02, 0.3])
def test_sinkhorn_is_three_rounds_of_dividing_by_prototype_and_sample_sums(temp, scale):
  logits = normal(24, 10, scale=scale)
  targets = sinkhorn_knopp(logits, temp=temp)
  assert targets.dtype == jnp.float32
  np.testing.assert_allclose(targets, sinkhorn_oracle(logits, temp), 2e-5, 1e-7)


def test_sinkhorn_reads_bfloat16_but_computes_in_float32():
  logits = jnp.asarray(normal(12, 8), jnp.bfloat16)
  wanted = sinkhorn_oracle(np.asarray(logits, np.float32), 0.5)
  targets = sinkhorn_knopp(logits, temp=0.5)
  assert targets.dtype == jnp.float32
  np.testing.assert_allclose(targets, wanted, 2e-5, 1e-7)


def test_sinkhorn_rows_sum_to_one():
  targets = np.asarray(sinkhorn_knopp(normal(24, 10, scale=0.5), temp=0.05))
  np.testing.assert_allclose(targets.sum(-1), np.ones(24), atol=1e-6)


def test_sinkhorn_uses_every_prototype_alike():
  # One prototype is everybody's favourite.
  logits = normal(24, 6) + np.float32([3, 0, 0, 0, 0, 0])
  use = np.asarray(sinkhorn_knopp(logits, temp=1.0, iterations=30)).sum(0)
  np.testing.assert_allclose(use, np.full(6, 24 / 6), rtol=1e-5)
  after_three = np.asarray(sinkhorn_knopp(logits, temp=1.0)).sum(0)
  np.testing.assert_allclose(after_three, np.full(6, 24 / 6), rtol=0.1)


def test_shifting_one_sample_changes_sinkhorn_targets_and_shifting_all_does_not():
  logits = normal(12, 8, scale=0.2)
  targets = np.asarray(sinkhorn_knopp(logits, temp=0.05))
  one = logits + np.float32([0.2] + [0] * 11)[:, None]
  shifted = np.asarray(sinkhorn_knopp(one, temp=0.05))
  assert np.abs(shifted - targets).max() > 1e-3
  np.testing.assert_allclose(shifted, sinkhorn_oracle(one, 0.05), 2e-5, 1e-7)
  np.testing.assert_allclose(sinkhorn_knopp(logits + 1, temp=0.05), targets, 1e-4, 1e-6)


@pytest.mark.parametrize("scale", [10.0, 1e4, 1e30])
def test_sinkhorn_stays_finite_for_extreme_logits(scale):
  logits = normal(16, 8, scale=scale)
  logits[3], logits[5] = 0, scale
  targets = np.asarray(sinkhorn_knopp(logits, temp=0.04))
  assert np.isfinite(targets).all() and (targets >= 0).all()
  assert (targets.sum(-1) < 1 + 1e-5).all()


def test_sums_over_samples_and_features_ask_for_full_float32_products():
  # The default rounds factors to bfloat16 on TPU and to TensorFloat-32 on GPU.
  for function, shape in (
    (functools.partial(losses.sinkhorn_knopp, temp=0.1), (4, 3)),
    (losses.koleo, (2, 4, 3)),
  ):
    jaxpr = jax.make_jaxpr(function)(jnp.ones(shape))
    products = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert products
    for product in products:
      assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2


def test_centered_softmax_subtracts_the_center_before_dividing_by_the_temperature():
  logits, center = normal(2, 3, 7), normal(7, seed=1)
  targets = jax.jit(losses.centered_softmax)(jnp.bfloat16(logits), center, temp=0.05)
  rounded = np.asarray(jnp.bfloat16(logits), np.float64)
  assert targets.dtype == jnp.float32
  np.testing.assert_allclose(
    targets, softmax_oracle((rounded - center) / 0.05), 1e-5, 1e-7
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mass", [1.0, 2.0, 0.3])
def test_cross_entropy_follows_the_formula_for_targets_of_any_mass(dtype, mass):
  logits = np.asarray(jnp.asarray(normal(2, 3, 9), dtype), np.float32)
  targets = mass * softmax_oracle(normal(2, 3, 9, seed=1)).astype(np.float32)
  loss = cross_entropy(jnp.asarray(logits, dtype), targets, temp=0.1)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, cross_entropy_oracle(logits, targets, 0.1), 1e-5)


def test_cross_entropy_pulls_by_softmax_minus_target():
  logits, targets = normal(4, 9), softmax_oracle(normal(4, 9, seed=1))
  loss = lambda z: cross_entropy(z, targets, temp=0.1).sum()  # noqa: E731
  grads = jax.jit(jax.grad(loss))(logits)
  wanted = (softmax_oracle(logits / 0.1) - targets) / 0.1
  np.testing.assert_allclose(grads, wanted, 1e-4, 1e-5)


def test_cross_entropy_stays_finite_for_extreme_logits():
  logits = np.float32([[1e4, -1e4, 0.0]])
  loss = cross_entropy(logits, np.float32([[0.0, 1.0, 0.0]]), temp=0.1)
  np.testing.assert_allclose(loss, [2e5], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_koleo_is_minus_the_mean_log_distance_to_the_nearest_neighbour(dtype):
  features = np.asarray(jnp.asarray(normal(3, 6, 5), dtype), np.float32)
  loss = koleo(jnp.asarray(features, dtype))
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, koleo_oracle(features), 1e-5)


def test_koleo_neighbours_come_from_the_same_group_alone():
  features = normal(2, 4, 5)
  features[1] = features[0] + np.float32(1e-4)  # twins, but in the other group
  wanted = np.mean([koleo_oracle(features[g : g + 1]) for g in range(2)])
  np.testing.assert_allclose(koleo(features), wanted, 1e-4)
  assert koleo(features.reshape(1, 8, 5)) > wanted + 3


def test_koleo_never_takes_a_row_for_its_own_neighbour():
  # All cosines are negative but a row's with itself.
  corners = np.float32([[[1, 0], [-1, 0.1]]])
  np.testing.assert_allclose(koleo(corners), koleo_oracle(corners), 1e-5)
  assert koleo(corners) < 0  # the neighbour is about 2 away: -log(2)


def test_koleo_gradient_moves_a_row_and_its_neighbour_like_finite_differences():
  features, direction = normal(1, 4, 5), normal(1, 4, 5, seed=1)
  slope = np.vdot(jax.jit(jax.grad(losses.koleo))(features), direction)
  h = 1e-5
  rise = koleo_oracle(features + np.float64(h) * direction)
  rise -= koleo_oracle(features - np.float64(h) * direction)
  np.testing.assert_allclose(slope, rise / (2 * h), 1e-4)


@pytest.mark.parametrize("row", [[0.3, -0.2, 0.5], [0.0, 0.0, 0.0]])
def test_koleo_of_identical_rows_has_finite_loss_and_gradients(row):
  features = jnp.tile(jnp.float32(row), (2, 4, 1))
  loss, grads = jax.jit(jax.value_and_grad(losses.koleo))(features)
  assert np.isfinite(loss) and np.isfinite(grads).all()
  assert loss > 15  # about -log(1e-8)
