"""scikit-learn's handwritten digits, grey, 8 x 8 pixels, in memory.

Their label maps say which pixels are strokes of which digit: 0 background, 1 to 10 the
digits 0 to 9, and IGNORE at the edges of strokes, where a pixel is neither.
"""

import hashlib
import importlib.metadata

import numpy as np

from dinojax.data import label_maps

TEST = 450  # of 1,797; the last ones
PAPER, INK = 64, 128  # grey levels: below is background, from INK on is a stroke


class DigitsSource:
  """One split of the digits."""

  class_names = tuple("0123456789")
  map_classes = ("background", *class_names)
  notes = ()

  def __init__(self, split: str, where: str):
    """split: "train" or "test"."""
    # From scikit-learn's file: to import scikit-learn takes two seconds.
    package = importlib.metadata.distribution("scikit-learn")
    file = package.locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = slice(-TEST, None) if split == "test" else slice(-TEST)
    table = np.loadtxt(file, np.int64, delimiter=",")[rows]  # [len, 64 pixels + label]
    grey = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    self.where = where
    self._split = split
    self._images = np.repeat(grey[..., None], 3, axis=-1)  # [len, 8, 8, 3]
    self.labels = table[:, -1]
    self.fingerprint = hashlib.sha256(self._images.tobytes()).hexdigest()[:16]

  def __len__(self) -> int:
    """Returns 1347 for train, 450 for test."""
    return len(self._images)

  def __getitem__(self, index: int) -> dict:
    """Returns one digit and its label map, not encoded."""
    image, label = self._images[index], int(self.labels[index])
    return {"image": image, "label": label, "label_map": strokes(image[..., 0], label)}

  def name(self, index: int) -> str:
    """Returns split and position."""
    return f"digits:{self._split}#{index}"


def strokes(grey: np.ndarray, digit: int) -> np.ndarray:
  """The label map of a digit: uint8 [H, W] to the same shape."""
  edges = np.where(grey < PAPER, 0, label_maps.IGNORE)
  return np.where(grey >= INK, 1 + digit, edges).astype(np.uint8)
