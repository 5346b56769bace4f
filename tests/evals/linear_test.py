"""The grid of linear heads: each is what PyTorch would train alone, on any mesh."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from knn_test import bank_of, mesh_of

from dinojax import errors
from dinojax.evals import linear

WIDTH, BLOCKS, CLASSES = 8, 4, 5  # a width that eight devices divide
SPANS = linear.inputs(BLOCKS, WIDTH)
SETTINGS = dict(num_classes=CLASSES, steps=100, batch_size=32, seed=3)


def rows(count, seed, *, signal=1.0):
  """Features [count, 5 * WIDTH] whose columns each know a bit of the label."""
  rng = np.random.default_rng(seed)
  directions = np.random.default_rng(9).normal(size=(CLASSES, 5 * WIDTH))
  labels = rng.integers(CLASSES, size=count)
  noise = rng.normal(size=(count, 5 * WIDTH))
  return (signal * directions[labels] + 2 * noise).astype(np.float32), labels


def run(train, test, *, shape=(1, 1), val=None, **changes):
  mesh = mesh_of(*shape)
  banks = [x and bank_of(mesh, *x, batch_size=16) for x in (train, test, val)]
  settings = dict(width=WIDTH, mesh=mesh) | SETTINGS | changes
  with jax.set_mesh(mesh):
    return linear.linear(banks[0], banks[1], val=banks[2], **settings)


def fit(x, labels, shape=(1, 1), spans=SPANS, **changes):
  mesh = mesh_of(*shape)
  bank = bank_of(mesh, x, labels, batch_size=16)
  with jax.set_mesh(mesh):
    return linear.fit(bank, spans=spans, mesh=mesh, **SETTINGS | changes)


def by_torch(x, labels, name, rate):
  """Kernel and bias of one head, trained alone."""
  index = list(SPANS).index(name)
  first = linear.first_heads(SPANS, CLASSES, SETTINGS["seed"])[index]
  place = linear.RATES.index(rate)
  kernel = torch.tensor(np.array(first.kernel[:, place])).requires_grad_()
  bias = torch.zeros(CLASSES, requires_grad=True)
  scaled = rate * SETTINGS["batch_size"] / 256
  optimizer = torch.optim.SGD([kernel, bias], lr=scaled, momentum=0.9, weight_decay=0)
  schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
    optimizer, SETTINGS["steps"], eta_min=0
  )
  order = linear.order(labels, seed=SETTINGS["seed"], batch_size=SETTINGS["batch_size"])
  for _ in range(SETTINGS["steps"]):
    chosen = next(order)
    inputs = torch.tensor(x[chosen][:, SPANS[name]])
    optimizer.zero_grad()
    F.cross_entropy(inputs @ kernel + bias, torch.tensor(labels[chosen])).backward()
    optimizer.step()
    schedule.step()
  return kernel.detach().numpy(), bias.detach().numpy()


def test_every_input_at_three_rates_equals_a_head_that_pytorch_trains_alone():
  x, labels = rows(150, seed=0)
  heads = fit(x, labels)
  for index, name in enumerate(SPANS):
    for rate in (linear.RATES[0], linear.RATES[6], linear.RATES[12]):
      kernel, bias = by_torch(x, labels, name, rate)
      place = linear.RATES.index(rate)
      np.testing.assert_allclose(heads[index].kernel[:, place], kernel, atol=2e-5)
      np.testing.assert_allclose(heads[index].bias[place], bias, atol=2e-5)


def test_eight_devices_train_what_one_trains_and_share_the_kernels():
  x, labels = rows(150, seed=0)
  labels[[5, 90]] = -1
  one = fit(x, labels)
  for shape in ((1, 8), (4, 2)):
    eight = fit(x, labels, shape)
    for head in eight:
      assert head.kernel.addressable_shards[0].data.size == head.kernel.size / 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, eight)


def test_a_width_that_the_devices_do_not_divide_trains_the_same():
  x, labels = rows(150, seed=0)
  spans = linear.inputs(2, 6)
  one, eight = fit(x, labels, spans=spans), fit(x, labels, (1, 8), spans=spans)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, eight)


def by_hand(x, labels, span, place, *, classes, steps, batch_size, seed):
  """Kernel and bias of one head in float64, from method.md section 9 alone."""
  index = list(SPANS.values()).index(span)
  first = linear.first_heads(SPANS, classes, seed)[index].kernel[:, place]
  parameters = np.concatenate([np.float64(first), np.zeros((1, classes))])
  x = np.concatenate([np.float64(x[:, span]), np.ones((len(x), 1))], axis=1)
  velocity = np.zeros_like(parameters)
  order = linear.order(labels, seed=seed, batch_size=batch_size)
  for step in range(steps):
    chosen = next(order)
    scores = np.exp(x[chosen] @ parameters)
    error = scores / scores.sum(1, keepdims=True) - np.eye(classes)[labels[chosen]]
    velocity = 0.9 * velocity + x[chosen].T @ error / batch_size
    rate = (1, 2, 5)[place % 3] * 10.0 ** (place // 3 - 5) * batch_size / 256
    parameters -= rate * (1 + np.cos(np.pi * step / steps)) / 2 * velocity
  return parameters[:-1], parameters[-1]


def test_a_few_steps_of_every_head_equal_float64_by_hand():
  settings = dict(steps=7, batch_size=16, seed=2)
  x, labels = rows(40, seed=4)
  labels = labels % 2
  heads = fit(x, labels, (1, 8), num_classes=2, **settings)
  for head, span in zip(heads, SPANS.values(), strict=True):
    for place in range(13):
      kernel, bias = by_hand(x, labels, span, place, classes=2, **settings)
      np.testing.assert_allclose(head.kernel[:, place], kernel, rtol=1e-5, atol=1e-6)
      np.testing.assert_allclose(head.bias[place], bias, rtol=1e-5, atol=1e-6)


def test_the_grid_is_that_of_the_protocol():
  rates = [f"{digit}e-{power}" for power in (5, 4, 3, 2) for digit in (1, 2, 5)]
  assert [float(f"{rate:.6g}") for rate in linear.RATES] == [*map(float, rates), 0.1]
  x = np.arange(5)[None].repeat(WIDTH, -1)  # which token a column belongs to
  seen = {name: sorted(set(x[0, span].tolist())) for name, span in SPANS.items()}
  assert seen == {
    "cls1": [3],
    "cls1+gap": [3, 4],
    "cls4": [0, 1, 2, 3],
    "cls4+gap": [0, 1, 2, 3, 4],
  }
  assert list(linear.inputs(1, WIDTH)) == ["cls1", "cls1+gap"]


def test_an_epoch_shows_every_labelled_image_once_and_no_other():
  labels = np.arange(30) % 4 - 1  # every fourth has none
  order = linear.order(labels.reshape(5, 6), seed=0, batch_size=8)
  seen = np.concatenate([next(order) for _ in range(11)])  # 88 of 22 labelled: 4 epochs
  epochs = seen.reshape(4, 22)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.flatnonzero(labels >= 0))
  assert (epochs[0] != epochs[1]).any()


def test_what_can_be_learnt_is_learnt_and_random_labels_are_not():
  learnt = run(rows(400, 0), rows(300, 1), steps=200)
  assert learnt["linear_top1"] > 0.85
  assert learnt["linear_head"].startswith("cls4")
  assert learnt["linear_top1"] == max(learnt["linear_grid"].values())
  assert len(learnt["linear_grid"]) == 52
  chance = run(rows(400, 0, signal=0), rows(2000, 1, signal=0), steps=200)
  assert 0.17 < np.mean(list(chance["linear_grid"].values())) < 0.23
  assert chance["linear_top5"] == 1  # of five classes


def test_the_head_is_chosen_on_val_and_rated_on_test_on_any_mesh():
  train, test, val = rows(300, 0), rows(300, 1), rows(300, 2, signal=0.5)
  result = run(train, test, val=val)
  assert result["linear_chosen_on"] == "val"
  assert result["linear_head"] == max(
    result["linear_grid"], key=result["linear_grid"].get
  )
  on_test = run(train, test, shape=(2, 4))
  assert on_test["linear_chosen_on"] == "test"
  wanted = on_test["linear_grid"][result["linear_head"]]
  assert result["linear_top1"] == pytest.approx(wanted, abs=0.01)


def test_heads_that_overflow_are_not_chosen_and_spoil_no_other():
  train, test = rows(300, 0), rows(300, 1)
  sound = run(train, test)
  for x, _ in (train, test):
    x[:, 4 * WIDTH :] *= 1e37  # the mean patch token
  result = run(train, test)
  assert "gap" not in result["linear_head"]
  for name, top1 in result["linear_grid"].items():
    if "gap" not in name:
      assert top1 == pytest.approx(sound["linear_grid"][name], abs=1e-6)


def test_mistakes_are_told():
  with pytest.raises(errors.UserError, match=r"--linear_batch=12 .* 8 devices; try 16"):
    run(rows(50, 0), rows(50, 1), shape=(1, 8), batch_size=12)
  x, labels = rows(50, 0)
  with pytest.raises(errors.UserError, match="--train has no readable"):
    run((x, labels * 0 - 1), rows(50, 1))


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_set_without_a_readable_label_is_told_and_not_rated_zero(name):
  x, labels = rows(50, 0)
  sets = {"test": (x, labels), "val": (x, labels)} | {name: (x, labels * 0 - 1)}
  with pytest.raises(errors.UserError, match=f"--{name} has no readable labelled"):
    run((x, labels), sets["test"], val=sets["val"])
