"""Attentive probes: each is what PyTorch would train alone, on any mesh."""

import functools

import blocks
import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from absl import flags
from knn_test import mesh_of

from dinojax import errors, sharding
from dinojax.data import layouts
from dinojax.evals import attentive, attentive_probes

WIDTH, PATCHES, CLASSES, STEPS, BATCH, SEED = 128, 6, 5, 12, 16, 3
SOME = tuple(attentive_probes.GRID[i] for i in (0, 13, 29))
FAST = (SOME[0], (0.04, 5e-4), (0.1, 5e-4))  # learns in few steps of few images


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # Grain's


def choose(patch, grid):
  """Trains a few probes only."""
  patch.setattr(attentive_probes, "GRID", grid)
  patch.setattr(attentive_probes, "NAMES", tuple("abcdefg"[: len(grid)]))


def batches():
  """Patches and labels of STEPS; some images have no label."""
  rng = np.random.default_rng(0)
  for _ in range(STEPS):
    x = rng.normal(size=(BATCH, PATCHES, WIDTH)).astype(np.float32)
    yield x, rng.integers(-1, CLASSES, size=BATCH).astype(np.int32)


@pytest.fixture(scope="module")
def fitted():
  """The probes of SOME by the number of devices."""
  found = {}
  for shape in ((1, 1), (2, 4)):
    mesh = mesh_of(*shape)
    where = sharding.batch_sharding(mesh)
    with pytest.MonkeyPatch.context() as patch:
      choose(patch, SOME)
      probes = attentive.fit(
        (jax.device_put(pair, where) for pair in batches()),
        width=WIDTH,
        num_classes=CLASSES,
        steps=STEPS,
        batch_size=BATCH,
        seed=SEED,
        mesh=mesh,
        where="",
      )
    found[mesh.size] = jax.device_get(probes)
  return found


@functools.cache
def first_probe():
  """What all probes start as."""
  draw = functools.partial(attentive_probes.first_probes, WIDTH, CLASSES, SEED)
  return jax.tree.map(lambda x: x[0], jax.device_get(jax.jit(draw)()))


class ByTorch(torch.nn.Module):
  """Query, keys and values of each patch, and a linear layer, in float64."""

  def __init__(self, first):
    super().__init__()
    tensor = lambda x: torch.tensor(np.array(x), dtype=torch.float64)  # noqa: E731
    self.query = torch.nn.Parameter(tensor(first.query))
    self.kv = torch.nn.Linear(WIDTH, 2 * WIDTH, dtype=torch.float64)
    self.linear = torch.nn.Linear(WIDTH, CLASSES, dtype=torch.float64)
    with torch.no_grad():
      self.kv.weight.copy_(tensor(np.concatenate([first.key.T, first.value.T])))
      self.linear.weight.copy_(tensor(first.kernel.T))
      self.kv.bias.zero_()
      self.linear.bias.zero_()

  def forward(self, x):
    def split(x):  # [B, heads, n, 64]
      return x.reshape(len(x), -1, WIDTH // 64, 64).transpose(1, 2)

    k, v = map(split, self.kv(torch.tensor(x, dtype=torch.float64)).chunk(2, dim=-1))
    query = split(self.query.expand(len(x), 1, -1))
    x = F.scaled_dot_product_attention(query, k, v).transpose(1, 2)
    return self.linear(x.reshape(len(x), -1))


def by_torch(rate, decay):
  """One probe, trained alone."""
  head = ByTorch(first_probe())
  biases = [x for name, x in head.named_parameters() if "bias" in name]
  others = [x for name, x in head.named_parameters() if "bias" not in name]
  groups = [dict(params=biases, weight_decay=0), dict(params=others)]
  optimizer = torch.optim.AdamW(groups, weight_decay=decay, betas=(0.9, 0.95))
  warmup = round(0.1 * STEPS)
  falling = (np.cos(np.linspace(0, np.pi, STEPS - warmup)) + 1) / 2
  schedule = [*np.linspace(0, 1, warmup), *falling]
  for share, (x, labels) in zip(schedule, batches(), strict=True):
    for group in optimizer.param_groups:
      group["lr"] = share * rate * BATCH / 256
    optimizer.zero_grad()
    wanted = torch.tensor(labels).long()
    F.cross_entropy(head(x), wanted, ignore_index=-1).backward()
    optimizer.step()
  return head


@pytest.mark.parametrize("place", range(3))
def test_a_probe_equals_one_that_pytorch_trains_alone_in_float64(fitted, place):
  head = by_torch(*SOME[place])
  probe = jax.tree.map(lambda x: x[place], fitted[1])
  key, value = (x.detach().numpy().T for x in head.kv.weight.chunk(2))
  pairs = {
    "query": head.query.detach().numpy(),
    "key": key,
    "value": value,
    "value_bias": head.kv.bias[WIDTH:].detach().numpy(),
    "kernel": head.linear.weight.detach().numpy().T,
    "bias": head.linear.bias.detach().numpy(),
  }
  for name, wanted in pairs.items():
    np.testing.assert_allclose(getattr(probe, name), wanted, atol=2e-6, err_msg=name)
  x, _ = next(batches())
  found = jax.jit(attentive_probes.logits)(probe, x)
  np.testing.assert_allclose(found, head(x).detach().numpy(), rtol=1e-3, atol=1e-5)


def test_eight_devices_train_the_probes_of_one(fitted):
  for one, eight in zip(*map(jax.tree.leaves, fitted.values()), strict=True):
    np.testing.assert_allclose(one, eight, atol=2e-6)


def test_the_grid_and_the_heads_are_those_of_the_protocol():
  rates = [f"{digit}e-{power}" for power in (5, 4, 3) for digit in (1, 2, 5)]
  wanted = [
    f"lr{float(x):g}_wd{y}" for x in (*rates, 0.01) for y in (0.0005, 0.001, 0.05)
  ]
  assert list(attentive_probes.NAMES) == wanted
  sizes = {64: 1, 384: 6, 1536: 24, 96: 1, 32: 1, 200: 2}
  assert {n: attentive_probes.attention_heads(n) for n in sizes} == sizes


class OnePatch:
  """Noise, but for one patch whose colour is the class: where it lies says nothing."""

  where, class_names, notes = '--train="one"', tuple("abc"), ()
  fingerprint = "0" * 16

  def __init__(self, count, seed, unlabelled=()):
    self.labels = np.random.default_rng(seed).integers(3, size=count)
    self.labels[list(unlabelled)] = -1
    self.seed = seed

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    rng = np.random.default_rng((self.seed, index))
    pixels = rng.integers(90, 110, size=(blocks.SIDE, blocks.SIDE, 3), dtype=np.uint8)
    top, left = 4 * rng.integers(4, size=2)
    pixels[top : top + 4, left : left + 4] = 0
    pixels[top : top + 4, left : left + 4, self.labels[index]] = 255
    return {"image": pixels, "label": int(self.labels[index])}

  def name(self, index):
    return f"one#{index}"


def probe(opened, *, params=blocks.PROJECTION, steps=60, shape=(1, 1)):
  mesh = mesh_of(*shape)
  how = dict(mesh=mesh, batch_size=100, resize=16, crop=16, workers=0)
  how |= dict(max_pixels=10_000, layout=layouts.RGB, progress=lambda: None)
  network = attentive.Network(blocks.tokens, params.astype(np.float32), 12, how)
  settings = dict(num_classes=3, steps=steps, batch_size=64, seed=0)
  found = attentive.attentive(network, opened, min_area=1.0, flip_prob=0.5, **settings)
  return {k.removeprefix("attentive_"): x for k, x in found.items()}


def test_the_query_finds_the_patch_that_tells_and_the_best_probe_is_chosen_off_test(
  monkeypatch,
):
  choose(monkeypatch, FAST)
  train, test = OnePatch(300, 0, unlabelled=(5, 90)), OnePatch(100, 1)
  found = probe(dict(train=train, test=test))
  grid = found["grid"]
  assert found["chosen_on"] == "a tenth of train" and list(grid) == ["a", "b", "c"]
  assert found["head"] == max(grid, key=grid.get)
  assert found["top1"] > 0.9 > grid["a"] and found["top5"] == 1.0


def test_what_gives_no_number_is_one_line(monkeypatch):
  choose(monkeypatch, SOME[:1])
  train, none = OnePatch(40, 0), OnePatch(40, 0, unlabelled=range(40))
  for opened, params, message in (
    (
      dict(train=none, test=train),
      blocks.PROJECTION,
      '--train="one" has no readable l',
    ),
    (
      dict(train=OnePatch(1, 0)),
      blocks.PROJECTION,
      "a single image, of which none can",
    ),
    (dict(train=train), blocks.PROJECTION * np.inf, "patch features are not finite"),
  ):
    with pytest.raises(errors.UserError, match=message):
      probe(opened, params=params, steps=2)
