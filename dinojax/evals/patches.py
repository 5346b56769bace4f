"""Patches of images with label maps: computed on the whole mesh, and remembered.

Dimension key of features.py, and S pixels of a square's side, N patches of an image, C
classes, M patches kept of an image, T steps.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh

from dinojax import errors, sharding
from dinojax.data import bad_records, dense_batches, label_maps, layouts, sources
from dinojax.evals import features


@dataclasses.dataclass(frozen=True)
class Reader:
  """A frozen network, and how it sees images.

  apply: jitted (params, images [B, S, S, C]) -> patch tokens [B, N, D]. params: of
  `apply`. patch_size: pixels. side: S, a multiple of it. mesh: of all devices.
  batch_size: B, a multiple of them. workers: Grain processes. max_pixels: larger images
  are corrupt, and those of another layout. progress: called after every batch.
  """

  apply: Callable[[Any, jax.Array], jax.Array]
  params: Any
  patch_size: int
  side: int
  mesh: Mesh
  batch_size: int
  workers: int
  max_pixels: int
  progress: Callable[[], None] = lambda: None
  layout: layouts.Layout = layouts.RGB

  @property
  def patches(self) -> int:
    """N."""
    return (self.side // self.patch_size) ** 2

  def batches(
    self,
    source: sources.DenseSource,
    *,
    num_classes: int,
    description: str,
    then: Callable[[dict], dict] = dict,
  ) -> Iterator[tuple[jax.Array, dict[str, jax.Array]]]:
    """Yields patch tokens float32 [B, N, D] of each batch, and what else it has.

    Args:
      source: images with label maps.
      num_classes: C.
      description: shown before the progress bar.
      then: as of `dense_batches.open_batches`; keeps "image" and "bad_records".
    """
    rows = sharding.local_positions(self.mesh, self.batch_size)
    batches = dense_batches.open_batches(
      source,
      batch_size=self.batch_size,
      rows=rows,
      side=self.side,
      num_classes=num_classes,
      workers=self.workers,
      max_pixels=self.max_pixels,
      layout=self.layout,
      then=then,
    )
    log = bad_records.Log("corrupt image or label map skipped")
    try:
      for batch in tqdm.tqdm(
        batches,
        desc=description,
        total=math.ceil(len(source) / self.batch_size),
        leave=False,
        disable=None if jax.process_index() == 0 else True,  # None: unless no terminal
      ):
        for _, message in bad_records.messages(source, batch.pop("bad_records")):
          log.add(message)
        batch = sharding.put_batch(self.mesh, batch, rows, self.batch_size)
        tokens = self.apply(self.params, batch.pop("image")).astype(jnp.float32)
        yield tokens, batch
        self.progress()
    finally:
      batches.close()


@flax.struct.dataclass
class Memory:
  """Patches with soft labels, M of each image at most, in the order of the source.

  bank: patches [T, B*M, D] as features, whose labels are 0, or -1 where there is none.
  shares: [T, B*M, C] float32, of each class among a patch's labelled pixels; sharded as
  the bank. of_image: M.
  """

  bank: features.Bank
  shares: jax.Array
  of_image: int = flax.struct.field(pytree_node=False)


def remember(
  reader: Reader,
  source: sources.DenseSource,
  *,
  num_classes: int,
  most: int,
  seed: int,
  description: str,
) -> Memory:
  """The patches of a source, by `label_maps.choose` where they are more than `most`.

  Args:
    reader: the network.
    source: images with label maps.
    num_classes: C.
    most: patches in all; but one of each image at least.
    seed: of the choice.
    description: shown before the progress bar.

  Raises:
    UserError: features are not finite.
  """
  kept = min(reader.patches, max(1, most // len(source)))
  choice = _Choice(reader.patch_size, num_classes, kept, seed)

  parts = []
  for tokens, batch in reader.batches(
    source, num_classes=num_classes, description=description, then=choice
  ):
    tokens = _take(tokens, batch["places"], mesh=reader.mesh)
    parts.append((tokens, batch["labels"], batch["shares"]))
    jax.block_until_ready(parts[-2:-1])  # one batch ahead of the device, no more
  tokens, labels, shares = map(jnp.stack, zip(*parts, strict=True))
  memory = Memory(features.Bank(tokens, labels), shares, kept)
  _, bad, first = jax.device_get(features.count_bad(memory.bank))
  if bad:
    refuse_not_finite(source, int(first) // kept)
  return memory


@functools.partial(jax.jit, static_argnames="mesh")  # once for all evaluations
def _take(tokens, places, *, mesh):
  """Patches [B, N, D] at places [B, M] -> [B * M, D]."""
  spec = sharding.BATCH
  pick = lambda x, at: jnp.take_along_axis(x, at[..., None], axis=1)  # noqa: E731
  specs = dict(in_specs=(spec, spec), out_specs=spec)
  picked = jax.shard_map(pick, mesh=mesh, **specs)(tokens, places)
  return picked.reshape(-1, tokens.shape[-1])


def count(memory: Memory) -> int:
  """How many patches are remembered."""
  return features.count_labelled(memory.bank)


def refuse_not_finite(source: sources.DenseSource, index: int) -> None:
  """Raises UserError: patches are not finite, first those of the image `index`."""
  raise errors.UserError(
    f"{source.where}: patch features are not finite, the first ones"
    f" {source.name(index)}'s; check the weights, or try --dtype=float32"
  )


@dataclasses.dataclass(frozen=True)
class _Choice:
  """A host batch with label maps -> which patches are kept, and their soft labels.

  places int32 [b, M], labels int32 [b*M], shares float32 [b*M, C].
  """

  patch_size: int
  num_classes: int
  kept: int
  seed: int

  def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    size = len(batch["image"])
    places = np.zeros((size, self.kept), np.int32)
    labels = np.full((size, self.kept), -1, np.int32)
    shares = np.zeros((size, self.kept, self.num_classes), np.float32)
    for i, index in enumerate(batch["index"].tolist()):
      counts = label_maps.patch_counts(
        batch["label_map"][i], patch_size=self.patch_size, num_classes=self.num_classes
      )
      rng = np.random.default_rng((self.seed, max(index, 0)))
      chosen = label_maps.choose(counts, self.kept, rng)
      places[i, : len(chosen)], labels[i, : len(chosen)] = chosen, 0
      counts = counts[chosen]
      shares[i, : len(chosen)] = counts / counts.sum(1, keepdims=True)
    return {
      "image": batch["image"],
      "bad_records": batch["bad_records"],
      "places": places,
      "labels": labels.ravel(),
      "shares": shares.reshape(-1, self.num_classes),
    }
