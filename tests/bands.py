"""A run of 13 bands, so small that its four steps take seconds."""

import pathlib
import shutil
import sys

import numpy as np

from experiments import digits

BANDS = 13


def write_images(folder):
  """24 arrays of two classes that differ in one band; one array has 12 bands."""
  rng = np.random.default_rng(0)
  for i in range(24):
    kind = i % 2
    pixels = rng.integers(500, 2_500, (20, 24, BANDS)).astype(np.uint16)
    pixels[..., 7] += 3_000 * kind
    path = folder / ("field", "water")[kind] / f"{i:02}.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, pixels[..., :12] if i == 10 else pixels)


def config(images, workdir):
  """digits.py, shrunk, for images of `write_images`."""
  config, source = digits.get_config(), f"folder:{images}"
  with config.unlocked():
    config.update(workdir=str(workdir), log_every=1, loggers=(), group_size=2)
    config.update(total_steps=4, alarm_window=4)
    config.checkpoint.every = 2
    config.schedules.learning_rate.warmup_steps = 1
    config.data.update(sources=(source,), batch_size=16, channels=BANDS)
    config.backbone.update(width=16, depth=1, heads=2)
    config.backbone.update(mean=(0.15,) * BANDS, std=(0.1,) * BANDS)
    config.backbone.update(image_dtype="uint16", max_value=10_000.0)
    config.heads.dino.update(hidden=16, bottleneck=8, prototypes=32)
    config.knn.update(train=source, test=source, every=4, ks=(3,))
    config.knn.update(linear=False, baselines=False)
    config.augment.local.jitter.saturation = 0.5  # which is off, as a line says
  return config


def train(images, whole, halved):
  """A whole run, and one that was ended after step 2, and resumes."""
  from dinojax import main  # here, since tests import this file for its images

  main.train(config(images, whole))
  shutil.copytree(whole / "checkpoints" / "2", halved / "checkpoints" / "2")
  main.train(config(images, halved))


if __name__ == "__main__":
  train(*map(pathlib.Path, sys.argv[1:]))
