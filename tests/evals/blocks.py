"""Images of coloured rectangles with label maps, and a network of one matrix."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh

from dinojax.data import label_maps
from dinojax.evals import patches

PATCH, SIDE, GRID, CLASSES = 4, 16, 4, 5
NAMES = tuple("abcde")


class Blocks:
  """Images of coloured rectangles and noise; the label map says which colour.

  Class 4 never occurs, and some pixels are to be ignored.
  """

  where, class_names, labels, notes = '--test="blocks"', (), None, ()
  map_classes, fingerprint = NAMES, "0" * 16

  def __init__(self, count, seed, broken=()):
    self.count, self.seed, self.broken = count, seed, broken

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    if index in self.broken:
      return {"image": b"no image", "label": -1, "label_map": self.map(index)}
    rng = np.random.default_rng((self.seed, index, 1))
    colours = np.random.default_rng(9).integers(200, size=(256, 3))
    grain = rng.integers(56, size=(SIDE, SIDE, 3))
    pixels = colours[self.map(index) % 7] + grain
    return {"image": pixels.astype(np.uint8), "label": -1, "label_map": self.map(index)}

  def map(self, index):
    rng = np.random.default_rng((self.seed, index))
    found = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(3):
      top, left = rng.integers(SIDE - 5, size=2)
      height, width = rng.integers(3, 11, size=2)
      value = rng.choice([1, 2, 3, label_maps.IGNORE])
      found[top : top + height, left : left + width] = value
    return found

  def name(self, index):
    return f"blocks#{index}"


PROJECTION = np.random.default_rng(5).normal(size=(PATCH * PATCH * 3, 12))


@jax.jit
def tokens(params, images):
  """A network of one matrix: patches [B, N, 12]."""
  x = images.reshape(-1, GRID, PATCH, GRID, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
  return (x.reshape(len(x), GRID**2, -1) / 255 - 0.4) @ params


def reader(shape=(2, 4), **changes):
  devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
  usual = dict(
    apply=tokens,
    params=PROJECTION.astype(np.float32),
    patch_size=PATCH,
    side=SIDE,
    mesh=Mesh(devices, ("data", "fsdp")),
    batch_size=8,
    workers=0,
    max_pixels=1_000,
  )
  return patches.Reader(**usual | changes)


@functools.cache
def remember(count=21, *, most, shape=(2, 4), seed=0, broken=()):
  source = Blocks(count, 0, broken)
  settings = dict(num_classes=CLASSES, description="")
  return patches.remember(reader(shape), source, most=most, seed=seed, **settings)
