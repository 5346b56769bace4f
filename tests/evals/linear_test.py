"""The grid of linear heads: each is what PyTorch would train alone, on any mesh."""

import functools

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


def run(train, test, *, shape=(2, 4), val=None, **changes):
  mesh = mesh_of(*shape)
  banks = [x and bank_of(mesh, *x, batch_size=16) for x in (train, test, val)]
  settings = dict(width=WIDTH, mesh=mesh) | SETTINGS | changes
  with jax.set_mesh(mesh):
    return linear.linear(banks[0], banks[1], val=banks[2], **settings)


@functools.cache
def sound():
  """A result that can be got wrong: chosen and evaluated on test."""
  return run(rows(300, 0), rows(900, 1))


def labelled():
  """Rows to train on, of which two have no label."""
  x, labels = rows(300, seed=0)  # as many as for `run`: the programs are the same
  labels[[5, 90]] = -1
  return x, labels


@functools.cache
def fitted(shape, blocks, width):
  """Heads trained on `labelled`."""
  mesh = mesh_of(*shape)
  bank = bank_of(mesh, *labelled(), batch_size=16)
  with jax.set_mesh(mesh):
    spans = linear.inputs(blocks, width)
    return linear.fit(bank, spans=spans, mesh=mesh, **SETTINGS)


@functools.cache
def first_heads(blocks, width):
  spans = linear.inputs(blocks, width)
  draw = functools.partial(linear.first_heads, spans, CLASSES, SETTINGS["seed"])
  return jax.device_get(jax.jit(draw)())


def steps():
  """Labelled rows of each step."""
  own = {name: SETTINGS[name] for name in ("seed", "batch_size")}
  order = linear.order(labelled()[1], **own)
  return [next(order) for _ in range(SETTINGS["steps"])]


def by_torch(x, labels, name, rate):
  """Kernel and bias of one head, trained alone."""
  first = first_heads(BLOCKS, WIDTH)[list(SPANS).index(name)]
  place = linear.RATES.index(rate)
  kernel = torch.tensor(np.array(first.kernel[:, place])).requires_grad_()
  bias = torch.zeros(CLASSES, requires_grad=True)
  scaled = rate * SETTINGS["batch_size"] / 256
  optimizer = torch.optim.SGD([kernel, bias], lr=scaled, momentum=0.9, weight_decay=0)
  schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
    optimizer, SETTINGS["steps"], eta_min=0
  )
  for chosen in steps():
    inputs = torch.tensor(x[chosen][:, SPANS[name]])
    optimizer.zero_grad()
    F.cross_entropy(inputs @ kernel + bias, torch.tensor(labels[chosen])).backward()
    optimizer.step()
    schedule.step()
  return kernel.detach().numpy(), bias.detach().numpy()


@pytest.mark.parametrize("name", SPANS)
def test_a_head_of_each_input_equals_one_that_pytorch_trains_alone(name):
  x, labels = labelled()
  head = jax.device_get(fitted((1, 1), BLOCKS, WIDTH)[list(SPANS).index(name)])
  for place in (0, 6, 12):
    kernel, bias = by_torch(x, labels, name, linear.RATES[place])
    np.testing.assert_allclose(head.kernel[:, place], kernel, atol=2e-5)
    np.testing.assert_allclose(head.bias[place], bias, atol=2e-5)


def test_eight_devices_train_what_one_trains_and_share_the_kernels():
  one, eight = (fitted(shape, BLOCKS, WIDTH) for shape in ((1, 1), (2, 4)))
  for head in eight:
    assert head.kernel.addressable_shards[0].data.size == head.kernel.size / 8
  for a, b in zip(*map(jax.tree.leaves, jax.device_get((one, eight))), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def by_hand(span, first, place):
  """Kernel and bias of one head in float64, from method.md section 9 alone."""
  x, labels = labelled()
  parameters = np.concatenate([np.float64(first[:, place]), np.zeros((1, CLASSES))])
  x = np.concatenate([np.float64(x[:, span]), np.ones((len(x), 1))], axis=1)
  velocity, batch_size = np.zeros_like(parameters), SETTINGS["batch_size"]
  for step, chosen in enumerate(steps()):
    scores = np.exp(x[chosen] @ parameters)
    error = scores / scores.sum(1, keepdims=True) - np.eye(CLASSES)[labels[chosen]]
    velocity = 0.9 * velocity + x[chosen].T @ error / batch_size
    rate = (1, 2, 5)[place % 3] * 10.0 ** (place // 3 - 5) * batch_size / 256
    parameters -= rate * (1 + np.cos(np.pi * step / SETTINGS["steps"])) / 2 * velocity
  return parameters[:-1], parameters[-1]


@pytest.mark.parametrize(("blocks", "width"), [(BLOCKS, WIDTH), (2, 6)])
def test_every_head_equals_float64_by_hand_even_if_no_device_divides_the_width(
  blocks, width
):
  spans, firsts = linear.inputs(blocks, width), first_heads(blocks, width)
  heads = jax.device_get(fitted((2, 4), blocks, width))
  for head, first, span in zip(heads, firsts, spans.values(), strict=True):
    for place in range(13):
      kernel, bias = by_hand(span, first.kernel, place)
      np.testing.assert_allclose(head.kernel[:, place], kernel, rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(head.bias[place], bias, rtol=1e-4, atol=1e-5)


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
  assert sound()["linear_top1"] > 0.8
  assert sound()["linear_chosen_on"] == "test"
  assert sound()["linear_head"].startswith("cls4")
  assert sound()["linear_top1"] == max(sound()["linear_grid"].values())
  assert len(sound()["linear_grid"]) == 52
  chance = run(rows(300, 0, signal=0), rows(900, 1, signal=0))
  assert 0.16 < np.mean(list(chance["linear_grid"].values())) < 0.24
  assert chance["linear_top5"] == 1  # of five classes


def test_the_head_is_chosen_on_val_and_rated_on_test_on_any_mesh():
  val = rows(900, 2, signal=0.5)
  result = run(rows(300, 0), rows(900, 1), shape=(1, 1), val=val)
  assert result["linear_chosen_on"] == "val"
  assert result["linear_head"] == max(
    result["linear_grid"], key=result["linear_grid"].get
  )
  wanted = sound()["linear_grid"][result["linear_head"]]
  assert result["linear_top1"] == pytest.approx(wanted, abs=0.01)


def test_heads_that_overflow_are_not_chosen_and_spoil_no_other():
  train, test = rows(300, 0), rows(900, 1)
  for x, _ in (train, test):
    x[:, 4 * WIDTH :] *= 1e37  # the mean patch token
  result = run(train, test)
  assert "gap" not in result["linear_head"]
  for name, top1 in result["linear_grid"].items():
    if "gap" not in name:
      assert top1 == pytest.approx(sound()["linear_grid"][name], abs=1e-6)


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
