"""Attentive probe: one learned query looks at the patches of an image.

Source: the evaluation of CAPI, in the public code (arXiv:2502.08769): a query, keys and
values by linear maps, D / 64 attention heads, no output projection, a linear layer to
the classes; a grid of rates and weight decays, all trained at once by AdamW.
DIFFERS: the key's bias is left out, which cancels in the softmax. Keys and values of
single patches are not computed: the query goes through the key's map once, and the
value's map is applied to the weighted mean of patches. Both are the same function.

Dimension key of features.py, and N patches of an image, H probes (pairs of a rate and
a decay), A attention heads, C classes.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jax.sharding import Mesh

from dinojax import errors, sharding
from dinojax.data import bad_records, labelled_batches, mixture, parts, sources
from dinojax.evals import attentive_probes, features

HELD_OUT = 0.1  # of the training images, to choose a probe on


class Network(NamedTuple):
  """A frozen network, and how it sees images.

  apply: jitted (params, uint8 [B, crop, crop, 3]) -> patch tokens [B, N, D]. params: of
  `apply`. width: D. how: as of `features.batches`, without its description.
  """

  apply: Callable[[Any, jax.Array], jax.Array]
  params: Any
  width: int
  how: dict[str, Any]


def attentive(
  network: Network,
  opened: dict[str, sources.Source],
  *,
  num_classes: int,
  steps: int,
  batch_size: int,
  min_area: float,
  flip_prob: float,
  seed: int,
) -> dict:
  """Trains all probes on "train"; evaluates the best one on "test".

  Patches are computed for each step and not kept. Probes, moments and gradient lie on
  every device: 16 * 30 * (2 * D * D + D * C) bytes, 3.0 GB for ViT-g on ImageNet-1k.

  Args:
    network: the backbone.
    opened: "train", "test" and perhaps "val", on which the best probe is chosen;
      without it that is a tenth of "train", which is then not trained on.
    num_classes: C.
    steps: of AdamW.
    batch_size: images of a step, a multiple of the devices.
    min_area: the least share of an image that a training crop shows.
    flip_prob: probability that it is mirrored.
    seed: of first weights, order, crops and of what is held out.

  Returns:
    attentive_top1, attentive_top5 (shares within 0..1), attentive_head, its name,
    attentive_chosen_on, and attentive_grid, the top-1 of every probe there.

  Raises:
    UserError: a set has no labelled image, features are not finite, or no probe is.
  """
  train, val = opened["train"], opened.get("val")
  if val is None:
    if len(train) < 2:
      raise errors.UserError(
        f"{train.where} has a single image, of which none can be held out; give --val"
      )
    train, val = parts.hold_out(train, HELD_OUT, seed=seed)
  batches = training_batches(
    train,
    batch_size=batch_size,
    steps=steps,
    kind=labelled_batches.random_crop(
      size=network.how["crop"], min_area=min_area, flip_prob=flip_prob
    ),
    seed=seed,
    how=network.how,
  )
  probes = fit(
    ((network.apply(network.params, x), labels) for x, labels in batches),
    width=network.width,
    num_classes=num_classes,
    steps=steps,
    batch_size=batch_size,
    seed=seed,
    mesh=network.how["mesh"],
    where=train.where,
  )
  finite = functools.reduce(
    np.logical_and,
    (np.isfinite(x).reshape(len(x), -1).all(1) for x in jax.device_get(probes)),
  )
  on_val = np.where(
    finite, accuracy(network, probes, val, "features to choose on")[0], -1
  )
  best = int(on_val.argmax())
  if on_val[best] < 0:
    raise errors.UserError("no attentive probe has stayed finite; check the weights")
  # Of all probes, so that no other program is compiled.
  found = accuracy(network, probes, opened["test"], "patches of --test")
  top1, top5 = found[:, best]
  return {
    "attentive_top1": float(top1),
    "attentive_top5": float(top5),
    "attentive_head": attentive_probes.NAMES[best],
    "attentive_chosen_on": "val" if "val" in opened else "a tenth of train",
    "attentive_grid": dict(zip(attentive_probes.NAMES, on_val.tolist(), strict=True)),
  }


def training_batches(
  source: sources.Source,
  *,
  batch_size: int,
  steps: int,
  kind: Any,
  seed: int,
  how: dict[str, Any],
) -> Iterator[tuple[jax.Array, jax.Array]]:
  """Yields crops [B, S, S, C] and labels [B], -1 for none, one pair a step.

  Args:
    source: images and labels; corrupt ones are substituted.
    batch_size: B.
    steps: how many.
    kind: of crops, as of `labelled_batches.random_crop`.
    seed: of order and crops.
    how: as of `Network`.
  """
  data, mesh = mixture.Mixture([source], [1.0]), how["mesh"]
  rows = sharding.local_positions(mesh, batch_size)
  opened = labelled_batches.open_batches(
    data,
    seed=seed,
    batch_size=batch_size,
    rows=rows,
    kind=kind,
    workers=how["workers"],
    start_step=0,
    max_pixels=how["max_pixels"],
    layout=how["layout"],
  )
  monitor = bad_records.Monitor(data, max_bad_share=1.0)
  hidden = None if jax.process_index() == 0 else True  # None: unless no terminal
  try:
    for _ in tqdm.trange(
      steps, desc="attentive probes", unit="step", leave=False, disable=hidden
    ):
      batch = next(opened)
      monitor.update(batch.pop("bad_records"))
      batch = sharding.put_batch(mesh, batch, rows, batch_size)
      yield batch["image"], batch["label"]
      how["progress"]()
  finally:
    opened.close()


def fit(
  batches: Iterator[tuple[jax.Array, jax.Array]],
  *,
  width: int,
  num_classes: int,
  steps: int,
  batch_size: int,
  seed: int,
  mesh: Mesh,
  where: str,
) -> attentive_probes.Probe:
  """All probes after all steps.

  Args:
    batches: patch tokens [B, N, D] and labels [B] of each step.
    width: D.
    num_classes: C.
    steps: of AdamW.
    batch_size: B.
    seed: of the first weights.
    mesh: of the batches.
    where: the data, for messages.

  Raises:
    UserError: patches are not finite, or nothing has a label.
  """
  tx = attentive_probes.optimizer(steps, batch_size)
  everywhere = sharding.replicated(mesh)

  def start():
    probes = attentive_probes.first_probes(width, num_classes, seed)
    return probes, tx.init(probes)

  @functools.partial(
    jax.jit, donate_argnums=0, out_shardings=(everywhere, (everywhere, everywhere))
  )
  def step(state, x, labels):
    probes, opt_state = state
    x = x.astype(jnp.float32)
    grads = attentive_probes.gradients(probes, x, labels, mesh=mesh)
    updates, opt_state = tx.update(grads, opt_state, probes)
    seen = (labels >= 0).sum(), jnp.isfinite(x).all()
    return (optax.apply_updates(probes, updates), opt_state), seen

  state, pending, total = jax.jit(start, out_shardings=everywhere)(), [], 0
  for x, labels in batches:
    state, seen = step(state, x, labels)
    pending.append(seen)
    if len(pending) > 1:  # one step ahead of the device, no more
      total += _labelled(pending.pop(0), where)
  total += sum(_labelled(seen, where) for seen in pending)
  if not total:
    raise errors.UserError(f"{where} has no readable labelled image to train on")
  return state[0]


def _labelled(seen: tuple, where: str) -> int:
  """Labelled images of a step; UserError if its patches are not finite."""
  count, finite = jax.device_get(seen)
  if not finite:
    raise errors.UserError(
      f"{where}: patch features are not finite; check the weights, or try"
      " --dtype=float32"
    )
  return int(count)


def accuracy(
  network: Network,
  probes: attentive_probes.Probe,
  source: sources.Source,
  description: str,
) -> np.ndarray:
  """Top-1 and top-5 of every probe, [2, H], as shares of the labelled images.

  Raises:
    UserError: no labelled image is readable.
  """
  right, total = 0, 0
  for images, labels in features.batches(
    source, description=description, **network.how
  ):
    x = network.apply(network.params, images)
    found = attentive_probes.count_right(probes, x, labels, mesh=network.how["mesh"])
    found, known = jax.device_get(found)
    right, total = right + found, total + int(known)
  if not total:
    raise errors.UserError(
      f"{source.where}: none of its {len(source):,} images is readable and has a label"
    )
  return right / total
