"""Pictures that differ as photographs do: shapes of all sizes, large ones stronger."""

import cv2
import numpy as np

from dinojax.data import images


def make(count, side=64, seed=0):
  """Returns `count` pictures, uint8 [side, side, 3]."""
  rng = np.random.default_rng(seed)
  made = []
  for _ in range(count):
    picture = np.full((side, side, 3), 128, np.float32)
    for cells in (3, 6, 12, 24):
      grey, tint = (
        rng.normal(size=(cells, cells, 1)),
        rng.normal(size=(cells, cells, 3)),
      )
      shapes = ((grey + tint / 3) * 100 / cells**0.5).astype(np.float32)
      picture += cv2.resize(shapes, (side, side), interpolation=cv2.INTER_CUBIC)
    made.append(np.clip(picture, 0, 255).astype(np.uint8))
  return made


def corners(rng, image):
  """A multi_crop that shows what image it is of: no two of `make` begin alike."""
  del rng
  corner = images.decode(image)[:4, :4]
  return {"global_crops": np.stack([corner] * 2), "local_crops": corner[None, :2, :2]}
