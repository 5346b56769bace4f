"""Gram anchoring: loss beside float64 NumPy, its gradient, its teacher, its crops."""

import functools

import dino_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch

from dinojax import assembly, gram

loss = jax.jit(gram.loss)
RNG = np.random.default_rng(0)


def tokens(crops=4, patches=9, width=6, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(crops, patches, width)).astype(np.float32)


def by_hand(student, teacher):
  """The mean over crops and pairs of patches, a pair at a time."""
  differences = []
  for s, t in zip(np.float64(student), np.float64(teacher), strict=True):
    for i in range(len(s)):
      for j in range(len(s)):
        ours, theirs = (
          x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for x in (s, t)
        )
        differences.append((ours - theirs) ** 2)
  return np.mean(differences)


def test_loss_equals_a_float64_mean_over_pairs_of_patches():
  student, teacher = tokens(), tokens(width=5, seed=1)
  found = loss(student, teacher)
  np.testing.assert_allclose(found, by_hand(student, teacher), rtol=1e-6)


def test_loss_is_zero_for_features_that_are_turned_and_scaled():
  student = tokens()
  turn, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
  lengths = RNG.uniform(0.5, 2, size=(4, 9, 1))
  assert loss(student, np.float32(lengths * (student @ turn))) < 1e-12
  assert loss(student, tokens(seed=1)) > 0.1


def test_gradient_is_the_slope_of_the_float64_loss():
  student, teacher = tokens(crops=2, patches=4), tokens(crops=2, patches=4, seed=1)
  grad = jax.jit(jax.grad(gram.loss))(student, teacher)
  towards = RNG.normal(size=student.shape)
  ends = [by_hand(student + h * towards, teacher) for h in (1e-6, -1e-6)]
  slope = (ends[0] - ends[1]) / 2e-6
  np.testing.assert_allclose((grad * towards).sum(), slope, rtol=1e-4)


def test_a_patch_of_zeros_has_a_finite_gradient():
  student = tokens()
  student[0, 0] = 0
  assert np.isfinite(jax.jit(jax.grad(gram.loss))(student, tokens(seed=1))).all()


def test_loss_and_gradient_in_chunks_are_those_of_all_crops(monkeypatch):
  arguments = tokens(crops=6), tokens(crops=6, seed=1)
  whole = jax.jit(jax.value_and_grad(gram.loss))(*arguments)
  monkeypatch.setattr(gram, "CHUNK_BYTES", 4 * 9**2 * 4)  # room for 4: takes 3
  fresh = lambda *arguments: gram.loss(*arguments)  # noqa: E731
  program = jax.jit(jax.value_and_grad(fresh)).lower(*arguments)
  text = program.as_text()
  assert "3x9x9xf32" in text and "6x9x9xf32" not in text
  chunked = program.compile()(*arguments)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8), chunked, whole
  )


@pytest.mark.parametrize("side, grid", [(8, (4, 4)), (6, (4, 4)), (5, (5, 5))])
def test_larger_maps_are_reduced_as_pytorch_interpolates(side, grid):
  features = tokens(crops=2, patches=side**2)
  square = torch.tensor(features, dtype=torch.float64)
  square = square.reshape(2, side, side, -1).permute(0, 3, 1, 2)
  small = torch.nn.functional.interpolate(square, size=grid, mode="bicubic")
  wanted = small.permute(0, 2, 3, 1).flatten(1, 2).numpy()
  np.testing.assert_allclose(gram.resize(features, grid), wanted, atol=2e-6)


def test_the_ema_teacher_takes_its_place_at_the_given_steps_alone():
  old, new = {"x": jnp.zeros(3)}, {"x": jnp.ones(3)}
  taken = [
    bool(gram.refresh(old, new, jnp.int32(step), steps=(3, 10))["x"].all())
    for step in range(1, 12)
  ]
  assert [i + 1 for i, new in enumerate(taken) if new] == [3, 10]
  assert gram.refresh(old, new, jnp.int32(3), steps=()) is old
  assert gram.refresh(None, new, jnp.int32(3), steps=()) is None


def test_its_patches_are_those_of_unmasked_larger_crops_on_the_students_grid():
  config = tiny.config()
  with config.unlocked():
    config.gram.update(teacher="x", crop_size=14 * 8)
    config.backbone.update(positions="rope", registers=1)
  nets, batch = assembly.make_nets(config), tiny.batch(config)
  assert batch["gram_crops"].shape == (8, 2, 112, 112, 3)
  init = functools.partial(nets.backbone.init, jax.random.key(0))
  shapes = jax.eval_shape(init, (nets.backbone.example(),), (None,))
  params = tiny.noise(shapes["params"])
  found = jax.jit(functools.partial(gram.teacher_patches, backbone=nets.backbone))(
    params, batch
  )
  assert found.shape == (16, 16, 32)
  crops = jnp.asarray(batch["gram_crops"][3, 1:])
  crops = (crops / 255 - np.float32([0.485, 0.456, 0.406])) / np.float32(
    [0.229, 0.224, 0.225]
  )
  (alone,) = dino_oracle.apply(nets.backbone, params, (crops,), (None,))
  wanted = gram.resize(alone.patches, (4, 4))[0]
  np.testing.assert_allclose(found[7], wanted, atol=1e-4)
