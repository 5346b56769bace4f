"""The reference recipe made small enough for tests, and batches of noise for it."""

import jax
import numpy as np

from experiments import vitg14

GRID = 4  # patches along a side of a global crop


def config():
  """vitg14.py in float32 with 2 blocks, 32 channels, 56 and 28 pixel crops."""
  config = vitg14.get_config()
  with config.unlocked():
    config.group_size = 2
    config.total_steps = 100
    config.optimizer.freeze_prototypes_steps = 10
    config.data.batch_size = 8
    config.backbone.update(width=32, depth=2, heads=2, pos_grid=GRID, dtype="float32")
    config.backbone.layerscale_init = 1.0  # blocks show from the first step on
    config.heads.dino.update(hidden=32, bottleneck=16, prototypes=48)
    config.heads.ibot.update(hidden=32, bottleneck=8, prototypes=40)
    config.schedules.learning_rate.update(peak=0.1, warmup_steps=10)
    config.schedules.teacher_momentum.start = 0.9
    for crop in (config.augment.global1, config.augment.global2):
      crop.size = 14 * GRID
    config.augment.local.size = 28
  return config


def batch(config, seed=0):
  """A batch of noise. Masked crop i of a group hides i + 1 patches."""
  rng = np.random.default_rng(seed)
  b, g, patches = config.data.batch_size, config.group_size, GRID**2
  sides = 14 * GRID, config.augment.local.size
  mask = np.zeros((b, 2, patches), bool)
  indices, weights = [], []
  for first in range(0, b, g):
    group = mask[first : first + g].reshape(2 * g, patches)  # a view
    for i, crop in enumerate(rng.permutation(2 * g)[:g]):
      group[crop, rng.permutation(patches)[: i + 1]] = True
    indices.append(np.flatnonzero(group))
    weights.append(1 / group.sum(1)[indices[-1] // patches])
  made = {
    "global_crops": _crops(rng, (b, 2), sides[0]),
    "local_crops": _crops(rng, (b, config.augment.num_local), sides[1]),
    "mask": mask,
    "masked_indices": np.int32(indices),
    "masked_weights": np.float32(weights),
  }
  if side := config.gram.crop_size:
    made["gram_crops"] = _crops(rng, (b, 2), side)
  return made


def noise(shapes, seed=0, scale=0.2):
  """Parameters of these shapes as of a trained network; gains are about 1."""
  rng = np.random.default_rng(seed)

  def leaf(path, s):
    mean = str(path[-1].key) in ("scale", "gamma", "gain")
    return rng.normal(size=s.shape, loc=mean, scale=scale).astype(np.float32)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def zeros(shapes):
  """Arrays of zeros of these shapes."""
  return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)


def _crops(rng, shape, side):
  """Crops that a network can tell apart: a tint each, a colour per patch, grain."""
  tint = rng.integers(128, size=(*shape, 1, 1, 3))
  colour = rng.integers(96, size=(*shape, side // 14, side // 14, 3))
  grain = rng.integers(32, size=(*shape, side, side, 3))
  colour = colour.repeat(14, axis=-3).repeat(14, axis=-2)
  return (tint + colour + grain).astype(np.uint8)
