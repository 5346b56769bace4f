"""Images of several sizes with label or depth maps of others, for windows."""

import blocks
import numpy as np

SIZES = ((16, 16), (20, 31), (50, 24), (16, 40), (33, 21), (24, 24), (17, 45), (30, 47))


class Varied:
  """Images whose colour tells class and depth, but for noise; some are corrupt.

  Maps are twice as large as images, and know nothing of a tenth of the pixels.
  """

  where, class_names, labels, notes = '--test="varied"', (), None, ()
  map_classes, depth_unit, fingerprint = blocks.NAMES, "m", "0" * 16

  def __init__(self, count, seed, broken=(), sizes=SIZES):
    self.count, self.seed, self.broken, self.sizes = count, seed, broken, sizes

  def __len__(self):
    return self.count

  def name(self, index):
    return f"varied#{index}"

  def __getitem__(self, index):
    rng = np.random.default_rng((self.seed, index))
    height, width = self.sizes[index % len(self.sizes)]
    level = rng.integers(4, size=(-(-height // 8), -(-width // 8)))
    level = level.repeat(8, 0).repeat(8, 1)[:height, :width]
    pixels = 60 * level[..., None] + rng.integers(30, size=(height, width, 3))
    twice = level.repeat(2, 0).repeat(2, 1)
    unknown = rng.random(twice.shape) < 0.1
    return {
      "image": b"" if index in self.broken else pixels.astype(np.uint8),
      "label": -1,
      "label_map": np.where(unknown, 255, twice).astype(np.uint8),
      "depth_map": np.where(unknown, 0, 1.0 + twice).astype(np.float32),
    }
