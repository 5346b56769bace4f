"""What is trained and what is not, the loss, layer decay, and one device as eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from dinojax import sharding
from dinojax.finetuning import assembly, averages, lora, tuning

MODULE = small.loaded().module
# Segmentation has moving statistics, too. "scratch" steps as "all".
DENSE = {"task": "segmentation"}
LORA = ("lora", DENSE | {"head_lr_scale": 10.0})
ALL, AVERAGED = ("all", {}), ("all", {"ema": 0.9})
WAYS = [("head", DENSE), LORA, ALL]


@functools.cache
def stepped(tune, **changes):
  """Recipe, and the states and scalars before and after each of two steps."""
  usual = dict(warmup_steps=0, weight_decay=0.0, learning_rate=1e-3)
  recipe = small.recipe(tune, **usual | changes)
  tx, frozen = tuning.make_optimizer(recipe, depth=2), frozen_of(tune)
  init = functools.partial(
    tuning.init_state, recipe, tx=tx, module=MODULE, classes=small.CLASSES
  )
  state = jax.jit(init)(small.params())
  step = jax.jit(
    functools.partial(
      tuning.train_step,
      network=tuning.Network(MODULE, recipe.task, recipe.columns),
      tx=tx,
      recipe=recipe,
    )
  )
  states, scalars = [state], {}
  for seed in range(2):
    state, scalars = step(state, frozen, batch_of(recipe.task, seed))
    states.append(state)
  return recipe, jax.device_get(states), scalars


def batch_of(task, seed):
  make = small.dense_batch if task == "segmentation" else small.batch
  return make(seed)


def frozen_of(tune):
  return None if tune == "all" else small.params()


def test_each_way_has_a_case():
  assert {"scratch", *(tune for tune, _ in WAYS)} == set(tuning.WAYS)


@pytest.mark.parametrize(("tune", "changes"), WAYS)
def test_all_that_is_trained_moves_and_nothing_else(tune, changes):
  recipe, (first, *_, state), scalars = stepped(tune, **changes)
  more = {"head": set(), "lora": {"adapters"}, "all": {"backbone"}}[tune]
  assert set(state.trained) == {"head"} | more
  assert {name for name in scalars if "norm" in name} == {
    f"grad_norm_{name}" for name in state.trained
  }
  moved = jax.tree.map(lambda x, y: bool((x != y).any()), first.trained, state.trained)
  if tune == "all":
    unseen = moved["backbone"].pop("mask_token"), moved["backbone"].pop("cls_token")
    assert not unseen[0]  # nothing is masked
  assert all(jax.tree.leaves(moved))
  if tune == "head":
    saved = tuning.to_saved(recipe, state, frozen_of(tune))["teacher"]["backbone"]
    jax.tree.map(np.testing.assert_array_equal, saved, small.params())


@pytest.mark.parametrize(("tune", "changes"), [*WAYS, AVERAGED])
def test_what_is_saved_is_the_state_again_and_plain_weights(tune, changes):
  recipe, states, _ = stepped(tune, **changes)
  state, frozen = states[-1], frozen_of(tune)
  saved = tuning.to_saved(recipe, state, frozen)
  again = tuning.of_saved(recipe, saved)
  jax.tree.map(np.testing.assert_array_equal, again, state)
  merged, plain = saved["teacher"]["backbone"], small.params()
  assert jax.tree.map(np.shape, merged) == jax.tree.map(np.shape, plain)
  head = saved["teacher"]["head"]["bias"]
  assert bool((head != state.trained["head"]["bias"]).any()) == ("ema" in changes)


def test_the_first_update_moves_each_layer_by_its_own_rate():
  moved = first_moves(*ALL)
  kernel = moved("backbone", "blocks", "mlp", "fc1", "kernel")
  assert is_rate(moved("head", "kernel"), 1e-3)
  assert is_rate(moved("backbone", "norm", "scale"), 1e-3)
  assert is_rate(kernel[1], 0.5e-3)
  assert is_rate(kernel[0], 0.25e-3)
  assert is_rate(moved("backbone", "patch_embed", "kernel"), 0.125e-3)


def first_moves(tune, changes):
  """How far the first step moved each weight of an array, by its names in the tree.

  A first step of AdamW moves weights by their rate, whatever the gradient.
  """
  _, (first, second, _), _ = stepped(tune, **changes)

  def moved(*names):
    before, after = first.trained, second.trained
    for name in names:
      before, after = before[name], after[name]
    return np.abs(np.asarray(after) - np.asarray(before))

  return moved


def is_rate(changes, rate):
  return float(np.median(changes)) == pytest.approx(rate, rel=1e-2)


def test_the_head_has_a_learning_rate_of_its_own():
  moved = first_moves(*LORA)
  for name in ("kernel", "bias"):
    assert is_rate(moved("head", name), 10 * 1e-3)
  for name in lora.KERNELS:
    assert is_rate(moved("adapters", "blocks", "attn", name, "b"), 1e-3)


def test_from_scratch_the_network_is_the_same_and_its_weights_are_the_seeds():
  @jax.jit
  def first(params, seed):
    recipe = small.recipe("scratch", seed=seed)
    tx = tuning.make_optimizer(recipe, depth=2)
    made = functools.partial(tuning.init_state, recipe, tx=tx, module=MODULE)
    return made(params, classes=small.CLASSES).trained

  own, zeros = small.params(), jax.tree.map(np.zeros_like, small.params())
  one, same, other = first(own, 0), first(zeros, 0), first(own, 1)
  assert jax.tree.map(np.shape, one["backbone"]) == jax.tree.map(np.shape, own)
  jax.tree.map(np.testing.assert_array_equal, one, same)
  kernels = (x["backbone"]["blocks"]["attn"]["qkv"]["kernel"] for x in (one, other))
  assert not np.array_equal(*kernels)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero():
  rate = tuning.learning_rate(small.recipe("all", steps=20, warmup_steps=4))
  values = [float(rate(step)) for step in range(21)]
  assert values[0] == 0
  assert values[2] == pytest.approx(0.005)
  assert max(values) == values[4] == pytest.approx(0.01)
  assert values[12] == pytest.approx(0.005)
  assert values[20] == pytest.approx(0, abs=1e-9)


def test_the_average_has_the_numbers_of_the_formula_and_changes_no_training():
  (_, states, _), (_, plain, _) = (
    stepped(tune, **changes) for tune, changes in (AVERAGED, ALL)
  )
  leaves = lambda i, tree: [np.float64(x) for x in jax.tree.leaves(tree[i])]  # noqa: E731
  first, second, third = (leaves(i, [s.trained for s in states]) for i in range(3))
  found = leaves(0, [states[2].average])
  for x, y, z, average in zip(first, second, third, found, strict=True):
    wanted = 2 / 11 * (0.1 * x + 0.9 * y) + 9 / 11 * z  # momentum 1 / 10, then 2 / 11
    np.testing.assert_allclose(average, wanted, 1e-5, 1e-7)
  jax.tree.map(np.testing.assert_array_equal, states[2].trained, plain[2].trained)
  late = averages.averaged(jnp.zeros(2), jnp.ones(2), jnp.int32(10**6), momentum=0.9)
  np.testing.assert_allclose(late, 0.1, 1e-5)


def test_segmentation_is_evaluated_with_moving_statistics_of_its_patches():
  recipe, states, _ = stepped("head", task="segmentation")
  network = tuning.Network(MODULE, recipe.task, recipe.columns)
  features = jax.jit(network.features)
  seen = [
    np.float64(features(small.params(), small.batch(seed)["image"]))
    for seed in range(2)
  ]
  (one, other) = ((x.mean((0, 1)), x.var((0, 1))) for x in seen)
  mean, variance = (
    # Momentum 1 / 10, then 2 / 11.
    2 / 11 * (0.1 * first + 0.9 * x) + 9 / 11 * y
    for first, x, y in zip((0, 1), one, other, strict=True)
  )
  norm = states[-1].norm
  np.testing.assert_allclose(norm["mean"], mean, 1e-4, 1e-5)
  np.testing.assert_allclose(norm["variance"], variance, 1e-4, 1e-5)
  head = jax.tree.map(np.float64, states[-1].head)
  normal = (seen[0] - mean) / np.sqrt(variance + 1e-5)
  scores = jax.jit(network.scores)
  found = scores(small.params(), states[-1].head, small.batch(0)["image"])
  np.testing.assert_allclose(found, normal @ head["kernel"] + head["bias"], 1e-3, 1e-4)


# mixing_test.py mixes on eight devices.
@pytest.mark.parametrize(("tune", "changes"), [LORA, AVERAGED])
def test_eight_devices_train_as_one(tune, changes, monkeypatch):
  monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 2**6)
  recipe, (_, _, one), scalars = stepped(tune, **changes)
  mesh = sharding.make_mesh(data=2, fsdp=4)
  with jax.set_mesh(mesh):
    loaded = small.loaded(mesh)
    made = assembly.assemble(
      recipe, loaded, mesh, classes=small.CLASSES, remat="matmuls"
    )
    state = made.init(loaded.params)
    for seed in range(2):
      batch = batch_of(recipe.task, seed)
      batch = jax.device_put(batch, sharding.batch_sharding(mesh))
      state, found = made.step(state, batch)
  for name, value in scalars.items():
    np.testing.assert_allclose(found[name], value, 1e-3, 1e-5, err_msg=name)
  # Adam divides by gradients: where those are near 0, it moves weights by its rate.
  for x, y in zip(*map(jax.tree.leaves, (one.trained, state.trained)), strict=True):
    assert np.quantile(np.abs(x - np.asarray(y)), 0.9) < 3e-5  # the rate is 1e-3
