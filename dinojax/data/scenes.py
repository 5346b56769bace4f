"""Scenes of several handwritten digits with label maps, made in memory.

Each scene is a black canvas with digits of scikit-learn's, of several sizes, beside one
another. Its label map has the strokes of all of them, as digits.py has them of one.
"""

import hashlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from dinojax.data import digits

SIDE = 48  # pixels of a scene
SCENES = {"train": 1_024, "test": 128}
TRIES = (4, 16)  # to place a digit, of each scene; where one lies, no other does
DIGIT_SIDE = (14, 20)  # pixels, both included


class ScenesSource:
  """One split of the scenes, of digits of that split alone; the same on any machine."""

  class_names = ()
  map_classes = digits.DigitsSource.map_classes
  labels = None
  notes = ()

  def __init__(self, split: str, where: str):
    """split: "train" or "test"."""
    self.where = where
    self._split = split
    source = digits.DigitsSource(split, where)
    rng = np.random.default_rng(list(SCENES).index(split))
    scenes = [compose(rng, source, DIGIT_SIDE, _classes) for _ in range(SCENES[split])]
    self._images, self._maps = map(np.stack, zip(*scenes, strict=True))
    content = self._images.tobytes() + self._maps.tobytes()
    self.fingerprint = hashlib.sha256(content).hexdigest()[:16]

  def __len__(self) -> int:
    """Returns 1024 for train, 128 for test."""
    return len(self._images)

  def __getitem__(self, index: int) -> dict:
    """Returns one scene and its label map, not encoded."""
    image = np.repeat(self._images[index][..., None], 3, axis=-1)
    return {"image": image, "label": -1, "label_map": self._maps[index]}

  def name(self, index: int) -> str:
    """Returns split and position."""
    return f"scenes:{self._split}#{index}"


def compose(
  rng: np.random.Generator,
  source: digits.DigitsSource,
  sides: tuple[int, int],
  mark: Callable[[np.ndarray, int, int], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
  """A scene of digits that do not overlap: grey and its map, uint8 [SIDE, SIDE].

  Args:
    rng: the only source of randomness.
    source: of the digits.
    sides: pixels of a digit, both included.
    mark: (grey of a digit, its label, its side) -> its part of the map; paper has 0.
  """
  image = np.zeros((SIDE, SIDE), np.uint8)
  marks = np.zeros((SIDE, SIDE), np.uint8)
  taken = np.zeros((SIDE, SIDE), bool)
  for _ in range(rng.integers(*TRIES, endpoint=True)):
    record = source[int(rng.integers(len(source)))]
    side = int(rng.integers(*sides, endpoint=True))
    top, left = rng.integers(SIDE - side, size=2, endpoint=True)
    box = slice(top, top + side), slice(left, left + side)
    if taken[box].any():
      continue
    # Pillow resizes 8-bit pixels in whole numbers: any machine gives the same.
    digit = Image.fromarray(record["image"][..., 0]).resize((side, side))
    image[box], taken[box] = np.asarray(digit), True
    marks[box] = mark(image[box], record["label"], side)
  return image, marks


def _classes(grey: np.ndarray, label: int, side: int) -> np.ndarray:
  del side
  return digits.strokes(grey, label)
