"""Heads trained on pixels: each is what PyTorch would train alone, on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from knn_test import mesh_of

from dinojax import sharding
from dinojax.evals import depth, linear_segmentation, pixel_heads

BATCH, GRID, SIDE, WIDTH, CLASSES, STEPS, SEED = 8, 4, 16, 12, 3, 9, 3
GOALS = {
  "classes": linear_segmentation.Classes(CLASSES),
  "metres": depth.Metres(0.5, 10.0),
}


def batches(name):
  """Patches [B, N, D] and maps [B, S, S] of STEPS, which patches know a bit of."""
  rng = np.random.default_rng(0)
  hint = rng.normal(size=(2, WIDTH))
  for _ in range(STEPS):
    coarse = rng.random((BATCH, GRID, GRID))
    x = rng.normal(size=(BATCH, GRID**2, WIDTH)) + 3
    x = x + (coarse.reshape(BATCH, -1, 1) > [0.3, 0.7]) @ hint
    fine = coarse.repeat(SIDE // GRID, axis=1).repeat(SIDE // GRID, axis=2)
    unknown = rng.random(fine.shape) < 0.2
    if name == "classes":
      found = np.where(unknown, 255, (fine > 0.3) + 1 * (fine > 0.7)).astype(np.uint8)
    else:
      found = np.where(unknown, 0, 1 + 6 * fine).astype(np.float32)
    yield x.astype(np.float32), found


class Training:
  """Heads of a goal, on a mesh, and one compiled step."""

  def __init__(self, name, shape):
    goal, self.mesh = GOALS[name], mesh_of(*shape)
    tx, key = goal.optimizer(STEPS), jax.random.key(SEED)

    def start():
      heads, norm = pixel_heads.first_state(goal, WIDTH, SEED)
      return heads, norm, jax.vmap(tx.init)(heads), jnp.int32(0)

    everywhere = sharding.replicated(self.mesh)
    self.first = jax.jit(start, out_shardings=everywhere)()
    how = dict(key=key, steps=STEPS, mesh=self.mesh)
    step = functools.partial(pixel_heads.train_step, goal, tx, **how)
    self._step = jax.jit(step, out_shardings=everywhere)

  def step(self, state, *batch):
    where = sharding.batch_sharding(self.mesh)
    return self._step(state, *jax.device_put(batch, where))


@pytest.fixture(scope="module", params=list(GOALS))
def training(request):
  """The goal's name, and its training by the number of devices."""
  name = request.param
  return name, {1: Training(name, (1, 1)), 8: Training(name, (2, 4))}


@pytest.fixture(scope="module")
def fitted(training):
  """The goal's name, and heads and statistics by the number of devices."""
  name, trained = training
  found = {}
  for devices, own in trained.items():
    state = own.first
    for pair in batches(name):
      state = own.step(state, *pair)
    found[devices] = jax.device_get(state[:2])
  return name, found


@functools.cache
def first_kernel(outputs):
  return np.asarray(jax.random.normal(jax.random.key(SEED), (WIDTH, outputs)))


@jax.jit
def channels_kept(step):
  key = jax.random.fold_in(jax.random.key(SEED), step)
  return jax.random.bernoulli(key, 0.9, (BATCH, 1, WIDTH))


@jax.jit
def evaluated(head, norm, x):
  return pixel_heads.outputs(head, pixel_heads.normalize(norm, x))


class ByTorch(torch.nn.Module):
  """Batch norm and a linear layer, in float64."""

  def __init__(self, outputs):
    super().__init__()
    self.norm = torch.nn.BatchNorm2d(WIDTH, dtype=torch.float64)
    self.conv = torch.nn.Conv2d(WIDTH, outputs, 1, dtype=torch.float64)
    with torch.no_grad():
      kernel = torch.tensor(0.01 * np.float64(first_kernel(outputs)).T)
      self.conv.weight.copy_(kernel[..., None, None])
      self.conv.bias.zero_()

  def forward(self, x):
    x = torch.tensor(x, dtype=torch.float64).transpose(1, 2)
    return self.conv(self.norm(x.reshape(len(x), WIDTH, GRID, GRID)))


def up(values):
  return F.interpolate(values, (SIDE, SIDE), mode="bilinear", align_corners=False)


def loss_by_torch(name, outputs, of_pixels, step):
  if name == "classes":
    wanted = torch.tensor(of_pixels).long()
    return F.cross_entropy(
      up(outputs), wanted, ignore_index=255, reduction="none"
    ).mean()
  weights = torch.relu(outputs) + 0.1
  weights = weights / weights.sum(1, keepdim=True)
  bins = torch.linspace(0.5, 10, 256, dtype=torch.float64)
  metres = up(torch.einsum("bkhw,k->bhw", weights, bins)[:, None])[:, 0]
  known = of_pixels > 0
  wanted = torch.tensor(np.float64(of_pixels[known]))
  error = torch.log(metres[known] + 0.001) - torch.log(wanted + 0.001)
  if step == 0:  # 100 of 38,400 steps
    return torch.sqrt(0.15 * error.mean() ** 2)
  return torch.sqrt(torch.var(error) + 0.15 * error.mean() ** 2)


def share_of_rate(name, step):
  if name == "classes":
    warmup = STEPS * 1500 / 40000
    if step < warmup:
      return (1 - (1 - step / warmup) * (1 - 1e-6)) * (1 - step / STEPS)
    return (1 + np.cos(np.pi * (step + 1) / STEPS)) / 2
  if step < STEPS / 3:
    return 1e-3 + (1 - 1e-3) * step / (STEPS / 3)
  falling = (1 + np.cos(np.pi * (step - STEPS / 3) / (STEPS * 2 / 3))) / 2
  return 1 / 25_000 + (1 - 1 / 25_000) * falling


def by_torch(name, peak):
  """One head, trained alone."""
  head = ByTorch(CLASSES if name == "classes" else 256)
  betas, decay = ((0.9, 0.999), 1e-3) if name == "classes" else ((0.9, 0.99), 1e-4)
  optimizer = torch.optim.AdamW(head.parameters(), betas=betas, weight_decay=decay)
  for step, (x, of_pixels) in enumerate(batches(name)):
    if name == "classes":
      x = x * np.asarray(channels_kept(step)) / 0.9
    optimizer.param_groups[0]["lr"] = peak * share_of_rate(name, step)
    optimizer.zero_grad()
    loss_by_torch(name, head(x), of_pixels, step).backward()
    if name == "metres":
      torch.nn.utils.clip_grad_norm_(head.parameters(), 35)
    optimizer.step()
  return head


def test_a_head_equals_one_that_pytorch_trains_alone_in_float64(fitted):
  name, found = fitted
  heads, norm = found[1]
  for place in (0, len(GOALS[name].rates) - 1):
    rate = GOALS[name].rates[place]
    wanted, own = by_torch(name, rate), pixel_heads.Head(*(x[place] for x in heads))
    pairs = (
      (own.scale, wanted.norm.weight),
      (own.shift, wanted.norm.bias),
      (own.kernel.T, wanted.conv.weight[..., 0, 0]),
      (own.bias, wanted.conv.bias),
      (norm.mean, wanted.norm.running_mean),
      (norm.variance, wanted.norm.running_var),
    )
    for mine, theirs in pairs:
      np.testing.assert_allclose(
        mine, theirs.detach().numpy(), rtol=1e-4, atol=0.02 * rate
      )
    wanted.eval()
    x, _ = next(batches(name))
    outputs = evaluated(own, norm, x)
    theirs = wanted(x).detach().numpy().reshape(BATCH, -1, GRID**2)
    np.testing.assert_allclose(outputs, theirs.transpose(0, 2, 1), rtol=1e-3, atol=1e-4)


def test_eight_devices_train_the_heads_of_one(fitted):
  name, found = fitted
  atol = 0.02 * max(GOALS[name].rates)
  for one, eight in zip(*map(jax.tree.leaves, found.values()), strict=True):
    np.testing.assert_allclose(one, eight, rtol=1e-4, atol=atol)


def test_a_batch_without_any_known_pixel_has_no_gradient(training):
  name, trained = training
  own, (x, of_pixels) = trained[1], next(batches(name))
  middle = np.int32(STEPS // 2)  # beyond what is of the start alone
  # Where a step leaves it, or the step would be compiled again.
  state = (*own.first[:3], jax.device_put(middle, sharding.replicated(own.mesh)))
  unknown = np.full_like(of_pixels, 255 if name == "classes" else 0)
  for pixels, none in ((unknown, True), (of_pixels, False)):
    heads, _, opt_state, _ = jax.device_get(own.step(state, x, pixels))
    assert all(np.isfinite(leaf).all() for leaf in heads)
    moments = [z for z in jax.tree.leaves(opt_state) if z.dtype == np.float32]
    assert len(moments) == 8 and all((z == 0).all() == none for z in moments)


def test_the_rate_of_segmentation_rises_and_falls_as_dinov3s():
  rate = linear_segmentation.rate(40_000)
  steps = [0, 750, 1_500, 20_000, 39_999]
  wanted = [1e-6, 0.5 * (1 - 750 / 40_000), 0.99653, 0.49996, 0]
  np.testing.assert_allclose([rate(t) for t in steps], wanted, atol=1e-5)
