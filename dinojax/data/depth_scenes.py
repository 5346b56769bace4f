"""Scenes of handwritten digits at several distances, with depth maps, made in memory.

A digit at twice the distance is half as large, and nothing else tells how far it is.
The depth map has the strokes of the digits; of the paper between them it knows nothing.
"""

import hashlib

import numpy as np

from dinojax.data import digits, scenes

DIGIT_SIDE = (12, 36)  # pixels, both included
NEAREST = 36.0  # pixels of a digit at one metre


class DepthScenesSource:
  """One split of the scenes, of digits of that split alone; the same on any machine."""

  class_names = ()
  depth_unit = "m"
  labels = None
  notes = ()

  def __init__(self, split: str, where: str):
    """split: "train" or "test"."""
    self.where = where
    self._split = split
    source = digits.DigitsSource(split, where)
    rng = np.random.default_rng((1, list(scenes.SCENES).index(split)))
    made = [
      scenes.compose(rng, source, DIGIT_SIDE, _sides)
      for _ in range(scenes.SCENES[split])
    ]
    self._images, self._sides = map(np.stack, zip(*made, strict=True))
    content = self._images.tobytes() + self._sides.tobytes()
    self.fingerprint = hashlib.sha256(content).hexdigest()[:16]

  def __len__(self) -> int:
    """Returns 1024 for train, 128 for test."""
    return len(self._images)

  def __getitem__(self, index: int) -> dict:
    """Returns one scene and its depth map, not encoded."""
    image = np.repeat(self._images[index][..., None], 3, axis=-1)
    sides = self._sides[index].astype(np.float32)
    metres = np.where(sides > 0, np.float32(NEAREST) / np.maximum(sides, 1), 0)
    return {"image": image, "label": -1, "depth_map": metres}

  def name(self, index: int) -> str:
    """Returns split and position."""
    return f"depth:{self._split}#{index}"


def _sides(grey: np.ndarray, label: int, side: int) -> np.ndarray:
  """The side of a digit at its strokes, else 0."""
  del label
  return np.where(grey >= digits.INK, side, 0).astype(np.uint8)
