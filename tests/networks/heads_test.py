"""DINOHead beside the same head in PyTorch, with PyTorch's own weight norm."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dinojax.networks import heads

WIDTH, HIDDEN, BOTTLENECK, PROTOTYPES = 12, 32, 8, 20


def make_head(dtype="float32"):
  return heads.DINOHead(
    hidden=HIDDEN, bottleneck=BOTTLENECK, prototypes=PROTOTYPES, dtype=dtype
  )


@functools.partial(jax.jit, static_argnums=0)
def apply(head, variables, x):
  return head.apply(variables, x)


def random_params(seed=0):
  """Large weights, so that every part of the head shows in its output."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(make_head().init, jax.random.key(0), jnp.zeros((1, WIDTH)))
  return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def inputs(*shape):
  return np.random.default_rng(1).normal(size=(*shape, WIDTH)).astype(np.float32)


class TorchHead(torch.nn.Module):
  """The reference's layers, filled with our parameters."""

  def __init__(self, params):
    super().__init__()
    self.linears = torch.nn.ModuleList()
    for name in ("fc1", "fc2", "fc3"):
      kernel = torch.tensor(params[name]["kernel"].T)
      linear = torch.nn.Linear(kernel.shape[1], kernel.shape[0])
      linear.weight.data = kernel
      linear.bias.data = torch.tensor(params[name]["bias"])
      self.linears.append(linear)
    last = torch.nn.Linear(BOTTLENECK, PROTOTYPES, bias=False)
    self.last = torch.nn.utils.parametrizations.weight_norm(last)
    self.gain = self.last.parametrizations.weight.original0
    self.v = self.last.parametrizations.weight.original1
    self.gain.data = torch.tensor(params["prototypes"]["gain"][:, None])
    self.v.data = torch.tensor(params["prototypes"]["v"].T)

  def forward(self, x):
    x = torch.tensor(x)
    for linear in self.linears[:2]:
      x = torch.nn.functional.gelu(linear(x))
    x = torch.nn.functional.normalize(self.linears[2](x), dim=-1, p=2, eps=1e-12)
    return self.last(x)


@pytest.mark.parametrize("size", [1.0, 1e-7])  # of what is normalised
def test_the_head_equals_pytorch_with_weight_norm(size):
  variables, x = random_params(), inputs(2, 5)
  fc3 = variables["params"]["fc3"]
  variables["params"]["fc3"] = {k: np.float32(size) * v for k, v in fc3.items()}
  found = apply(make_head(), variables, x)
  wanted = TorchHead(variables["params"])(x).detach().numpy()
  assert found.dtype == jnp.float32 and found.shape == (2, 5, PROTOTYPES)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_without_weight_norm_prototypes_are_a_plain_matrix():
  variables, x = random_params(), inputs(2, 5)
  kernel = variables["params"]["prototypes"]["v"]
  variables["params"]["prototypes"]["gain"] = np.linalg.norm(kernel, axis=0)
  wanted = apply(make_head(), variables, x)  # gain_k * v_k / |v_k| is v_k
  variables["params"]["prototypes"] = {"kernel": kernel}
  fields = dict(hidden=HIDDEN, bottleneck=BOTTLENECK, prototypes=PROTOTYPES)
  head = heads.DINOHead(**fields, dtype="float32", weight_norm=False)
  np.testing.assert_allclose(apply(head, variables, x), wanted, rtol=1e-5, atol=1e-5)


def test_gradients_equal_pytorch_with_weight_norm():
  variables, x = random_params(), inputs(5)
  pull = np.random.default_rng(2).normal(size=(5, PROTOTYPES)).astype(np.float32)
  loss = lambda v: (make_head().apply(v, x) * pull).sum()  # noqa: E731
  grads = jax.jit(jax.grad(loss))(variables)
  reference = TorchHead(variables["params"])
  (reference(x) * torch.tensor(pull)).sum().backward()
  pairs = {
    "gain": (grads["params"]["prototypes"]["gain"], reference.gain.grad[:, 0]),
    "v": (grads["params"]["prototypes"]["v"], reference.v.grad.T),
    "fc1": (grads["params"]["fc1"]["kernel"], reference.linears[0].weight.grad.T),
  }
  for name, (found, wanted) in pairs.items():
    np.testing.assert_allclose(found, wanted.numpy(), 1e-4, 1e-5, err_msg=name)


def test_a_zero_bottleneck_gives_zero_logits_and_finite_gradients():
  variables = jax.tree.map(np.zeros_like, random_params())
  variables["params"]["prototypes"] = random_params()["params"]["prototypes"]

  @jax.jit
  def both(variables):
    logits, pull = jax.vjp(lambda v: make_head().apply(v, inputs(3)), variables)
    return logits, pull(jnp.ones_like(logits))

  logits, grads = both(variables)
  np.testing.assert_array_equal(logits, np.zeros((3, PROTOTYPES)))
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_bfloat16_logits_are_float32_and_near_float32_ones():
  variables, x = random_params(), inputs(50)
  found = np.asarray(apply(make_head("bfloat16"), variables, x))
  wanted = np.asarray(apply(make_head(), variables, x))
  assert found.dtype == jnp.float32
  error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
  assert 1e-4 < error < 2e-2
  # Their spacing is finer than bfloat16's.
  assert (found != found.astype(jnp.bfloat16)).mean() > 0.5


def test_initial_weights_have_the_spread_of_the_reference():
  head = heads.DINOHead(hidden=256, bottleneck=64, prototypes=2048, dtype="bfloat16")
  params = jax.jit(head.init)(jax.random.key(0), jnp.zeros((1, 128)))["params"]
  params = jax.device_get(params)
  for name in ("fc1", "fc2", "fc3"):
    np.testing.assert_allclose(params[name]["kernel"].std(), 0.02, rtol=0.05)
    np.testing.assert_array_equal(params[name]["bias"], 0)
  v, bound = params["prototypes"]["v"], 64**-0.5
  assert np.abs(v).max() <= bound
  np.testing.assert_allclose(v.std(), bound / math.sqrt(3), rtol=0.02)
  np.testing.assert_array_equal(params["prototypes"]["gain"], 1)
