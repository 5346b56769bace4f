"""Linear probe by DINOv2's protocol: a grid of heads, all trained at once.

Source: the public DINOv2 evaluation code and arXiv:2304.07193, section 7.1. A head sees
the CLS token of the last block or of the last four, with or without the mean patch
token, and has one of 13 learning rates; no head depends on another.
DIFFERS: DINOv2 crops training images at random; here the features of each image are
computed once, from its centre crop, so that the grid costs minutes.

Dimension key of features.py, and F features of an image, H learning rates, C classes, n
images of a step.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from dinojax import errors, sharding
from dinojax.evals import features

RATES = tuple(digit * 10.0**power for power in range(-5, -1) for digit in (1, 2, 5))
RATES = (*RATES, 0.1)  # for a batch of 256
MOMENTUM = 0.9
STEPS_PER_CALL = 50


class Heads(NamedTuple):
  """The heads of one input: kernels [F, H, C], biases [H, C]."""

  kernel: jax.Array
  bias: jax.Array


def linear(
  train: features.Bank,
  test: features.Bank,
  *,
  val: features.Bank | None,
  width: int,
  num_classes: int,
  steps: int,
  batch_size: int,
  seed: int,
  mesh: Mesh,
) -> dict:
  """Trains all heads on `train`; evaluates the one that is best on `val` on `test`.

  Heads, momentum and gradient are sharded over the devices along F if the number of
  devices divides D: 12 * sum(F) * H * C bytes in all, 2.9 GB for ViT-g on ImageNet-1k.

  Args:
    train: CLS tokens of the last blocks, earliest first, and the mean patch token.
    test: the same of other images.
    val: the same of a third set; None: the best head is chosen on `test`, as
      published numbers do.
    width: D of a token.
    num_classes: C.
    steps: of SGD.
    batch_size: n, a multiple of the devices.
    seed: of first weights and order.
    mesh: that the banks are sharded over.

  Returns:
    linear_top1, linear_top5 (shares within 0..1), linear_head, its name,
    linear_chosen_on, and linear_grid, the top-1 of every head on that set.

  Raises:
    UserError: a set has no labelled image, or no head has stayed finite.
  """
  check_batch(batch_size, mesh, flag="linear_batch")
  for name, bank in (("test", test), ("val", val)):
    if bank is not None and not features.count_labelled(bank):
      raise errors.UserError(
        f"--{name} has no readable labelled image to evaluate linear heads on"
      )
  spans = inputs(train.features.shape[-1] // width - 1, width)
  names = [f"{name}_lr{rate:g}" for name in spans for rate in RATES]
  heads = fit(
    train,
    spans=spans,
    num_classes=num_classes,
    steps=steps,
    batch_size=batch_size,
    seed=seed,
    mesh=mesh,
  )
  finite = jax.device_get(_finite(heads))
  chosen_on = _accuracy(test if val is None else val, heads, spans=spans)
  top1 = np.where(finite, chosen_on[0], -1.0)
  best = int(top1.argmax())
  if top1[best] < 0:
    raise errors.UserError("no linear head has stayed finite; check the weights")
  final = chosen_on if val is None else _accuracy(test, heads, spans=spans)
  return {
    "linear_top1": float(final[0, best]),
    "linear_top5": float(final[1, best]),
    "linear_head": names[best],
    "linear_chosen_on": "test" if val is None else "val",
    "linear_grid": dict(zip(names, chosen_on[0].tolist(), strict=True)),
  }


def check_batch(batch_size: int, mesh: Mesh, *, flag: str) -> None:
  """Raises UserError if the devices do not divide the rows of a step."""
  if batch_size % mesh.size:
    raise errors.UserError(
      f"--{flag}={batch_size} must be a multiple of {mesh.size} devices; try"
      f" {-(-batch_size // mesh.size) * mesh.size}"
    )


def inputs(blocks: int, width: int) -> dict[str, slice]:
  """The inputs of the heads by name: slices of the features of `blocks` CLS tokens."""
  last, end = (blocks - 1) * width, blocks * width
  spans = {"cls1": slice(last, end), "cls1+gap": slice(last, end + width)}
  if blocks > 1:
    spans[f"cls{blocks}"] = slice(0, end)
    spans[f"cls{blocks}+gap"] = slice(0, end + width)
  return spans


def order(labels: np.ndarray, *, seed: int, batch_size: int) -> Iterator[np.ndarray]:
  """Positions [n] in labels.ravel() of the images of step 0, 1, ...

  Every epoch is a permutation of those with a label; steps run across epochs.
  """
  rows = np.flatnonzero(labels.ravel() >= 0)
  epoch, left = 0, rows[:0]
  while True:
    while len(left) < batch_size:
      left = np.concatenate(
        [left, np.random.default_rng((seed, epoch)).permutation(rows)]
      )
      epoch += 1
    yield left[:batch_size]
    left = left[batch_size:]


def loss(heads: list[Heads], x: jax.Array, labels: jax.Array, spans: dict) -> jax.Array:
  """Sum over all heads of their mean cross-entropy; x: [n, F], labels: [n]."""
  total = 0.0
  for logits in map(functools.partial(_logits, x), heads, spans.values()):
    own = jnp.take_along_axis(logits, labels[:, None, None], axis=-1)[..., 0]
    total += (jax.nn.logsumexp(logits, axis=-1) - own).mean(0).sum()
  return total


def optimizer(steps: int, batch_size: int) -> optax.GradientTransformation:
  """SGD with momentum and a learning rate for each head, with cosine decay to 0."""
  rates = np.array(RATES)[:, None] * batch_size / 256  # [H, 1]
  sgd = optax.sgd(optax.cosine_decay_schedule(1.0, steps), momentum=MOMENTUM)
  scale = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u * rates, updates))
  return optax.chain(sgd, scale)


def layout(mesh: Mesh, heads):
  """The sharding of heads or of their optimiser's state: kernels along F."""

  def rule(leaf):
    split = leaf.ndim == 3 and leaf.shape[0] % mesh.size == 0
    return sharding.batch_sharding(mesh) if split else sharding.replicated(mesh)

  return jax.tree.map(rule, heads)


def _logits(x, head, span):
  """[n, H, C] float32, split along n; under `jax.set_mesh`.

  Each device multiplies its rows of the kernels with the same features of all images,
  and the products are summed: less to send than kernels.
  """
  features_in, rates, classes = head.kernel.shape
  flat, x = head.kernel.reshape(features_in, rates * classes), x[:, span]
  if features_in % jax.sharding.get_abstract_mesh().size == 0:
    x = jax.lax.with_sharding_constraint(x, PartitionSpec(None, sharding.AXES))
  logits = sharding.constrain_batch(jnp.dot(x, flat, precision="highest"))
  return logits.reshape(len(x), rates, classes) + head.bias


def first_heads(spans: dict[str, slice], num_classes: int, seed: int) -> list[Heads]:
  """Heads with random kernels, N(0, 0.01), one set for each of `inputs`."""
  keys = jax.random.split(jax.random.key(seed), len(spans))
  bias = jnp.zeros((len(RATES), num_classes))
  sizes = [(span.stop - span.start, *bias.shape) for span in spans.values()]
  return [
    Heads(0.01 * jax.random.normal(key, size), bias)
    for key, size in zip(keys, sizes, strict=True)
  ]


def fit(
  bank: features.Bank,
  *,
  spans: dict[str, slice],
  num_classes: int,
  steps: int,
  batch_size: int,
  seed: int,
  mesh: Mesh,
) -> list[Heads]:
  """The heads after all steps; arguments as of `linear`, spans of `inputs`."""
  labels = multihost_utils.process_allgather(bank.labels, tiled=True)
  if not (np.asarray(labels) >= 0).any():
    raise errors.UserError("--train has no readable labelled image")
  tx = optimizer(steps, batch_size)
  stream = order(np.asarray(labels), seed=seed, batch_size=batch_size)

  def step(bank, state, rows):
    heads, opt_state = state
    x, wanted = features.fetch(bank, rows, mesh)
    grads = jax.grad(loss)(heads, x, wanted, spans)
    updates, opt_state = tx.update(grads, opt_state)
    return (optax.apply_updates(heads, updates), opt_state), None

  def start():
    heads = first_heads(spans, num_classes, seed)
    return heads, tx.init(heads)

  where = layout(mesh, jax.eval_shape(start))

  @functools.partial(jax.jit, donate_argnums=1, out_shardings=where)
  def run(bank, state, rows):
    return jax.lax.scan(functools.partial(step, bank), state, rows)[0]

  state = jax.jit(start, out_shardings=where)()
  hidden = None if jax.process_index() == 0 else True  # None: unless no terminal
  with tqdm.tqdm(
    total=steps, desc="linear heads", unit="step", leave=False, disable=hidden
  ) as bar:
    for start in range(0, steps, STEPS_PER_CALL):
      count = min(STEPS_PER_CALL, steps - start)
      rows = np.stack([next(stream) for _ in range(count)]).astype(np.int32)
      state = jax.block_until_ready(run(bank, state, rows))
      bar.update(count)
  return state[0]


@jax.jit
def _finite(heads: list[Heads]) -> jax.Array:
  """Which heads are, bool [inputs * H]."""
  return jnp.concatenate(
    [
      jnp.isfinite(head.kernel).all((0, 2)) & jnp.isfinite(head.bias).all(1)
      for head in heads
    ]
  )


def _accuracy(bank, heads, *, spans):
  """Top-1 and top-5 of every head, [2, inputs * H], as shares of the labelled rows."""

  @jax.jit
  def count(bank, heads):
    def step(counts, batch):
      x, labels = batch
      logits = [_logits(x, *pair) for pair in zip(heads, spans.values(), strict=True)]
      logits = jnp.concatenate(logits, axis=1)  # [B, inputs * H, C]
      wanted = jnp.maximum(labels, 0)[:, None, None]
      own = jnp.take_along_axis(logits, wanted, axis=-1)
      earlier = jnp.arange(logits.shape[-1]) < wanted
      rank = ((logits > own) | ((logits == own) & earlier)).sum(-1)
      there = (labels >= 0)[:, None] & jnp.isfinite(own[..., 0])
      right = jnp.stack([(there & (rank < top)).sum(0) for top in (1, 5)])
      return jax.tree.map(jnp.add, counts, (right, (labels >= 0).sum())), None

    # All sums are in the loop, for the reason of `sharding.unroll`.
    start = jnp.zeros((2, len(spans) * len(RATES)), jnp.int32), jnp.int32(0)
    return jax.lax.scan(step, start, (bank.features, bank.labels))[0]

  right, total = jax.device_get(count(bank, heads))
  return right / int(total)
