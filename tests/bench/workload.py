"""What step.py times: a config, and a batch of noise for it."""

import ast
import importlib.util
import sys

import numpy as np

from dinojax.data import masking

# What --small sets: a step of seconds on two cores.
SMALL = {
  "group_size": 8,
  "backbone.width": 192,
  "backbone.depth": 4,
  "backbone.heads": 3,
  "backbone.pos_grid": 8,
  "backbone.dtype": "float32",
  "augment.global1.size": 112,
  "augment.global2.size": 112,
  "augment.local.size": 56,
}
SMALL_HEAD = dict(hidden=512, prototypes=4096)


def mask_arguments(config) -> dict:
  """Arguments of `masking.block_masks` besides the generator."""
  return dict(
    group_size=config.group_size,
    views=2,
    grid=config.augment.global1.size // config.backbone.patch_size,
    **config.masking,
  )


def random_batch(config, rng) -> dict:
  """A host batch of noise, with real masks."""
  b, groups = config.data.batch_size, config.data.batch_size // config.group_size
  masks = [masking.block_masks(rng, **mask_arguments(config)) for _ in range(groups)]

  def crops(count, size):
    return rng.integers(0, 256, (b, count, size, size, 3), dtype=np.uint8)

  return {
    "global_crops": crops(2, config.augment.global1.size),
    "local_crops": crops(config.augment.num_local, config.augment.local.size),
    "mask": np.concatenate([m["mask"] for m in masks]),
    "masked_indices": np.stack([m["masked_indices"] for m in masks]),
    "masked_weights": np.stack([m["masked_weights"] for m in masks]),
  }


def override(config, path: str, value):
  """Sets the field at a dotted path that exists."""
  *groups, name = path.split(".")
  for group in groups:
    config = config.get(group, {})
  if name not in config:
    sys.exit(f"--set {path}: no such field; experiments/vitg14.py shows them all")
  config[name] = value


def load_config(path: str, *, batch: int | None, small: bool, assignments: list[str]):
  """The experiment of a file, as the command line changes it."""
  spec = importlib.util.spec_from_file_location("experiment", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  with config.unlocked():
    if small:
      for field, value in SMALL.items():
        override(config, field, value)
      for head in config.heads.values():
        head.update(SMALL_HEAD)
    config.data.batch_size = batch or (16 if small else 64)
    for assignment in assignments:
      field, _, text = assignment.partition("=")
      try:
        value = ast.literal_eval(text)
      except (SyntaxError, ValueError):
        value = text
      override(config, field, value)
  return config
