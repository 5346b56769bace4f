"""Part of a source: some of its records, in an order of their own."""

import hashlib

import numpy as np

from dinojax.data import sources


class Part:
  """The records of a source at given places; its classes and label maps are kept."""

  def __init__(self, source: sources.Source, places: np.ndarray):
    """places: int [len], in the source."""
    self._source, self._places = source, np.asarray(places, np.int64)
    self.where, self.class_names = source.where, source.class_names
    self.labels = None if source.labels is None else source.labels[self._places]
    self.notes = ()
    digest = hashlib.sha256(self._places.tobytes()).hexdigest()[:16]
    self.fingerprint = f"{source.fingerprint} part={digest}"
    if isinstance(source, sources.DenseSource):
      self.map_classes = source.map_classes

  def __len__(self) -> int:
    """Returns the number of places."""
    return len(self._places)

  def __getitem__(self, index: int) -> dict:
    """Reads one record."""
    return self._source[int(self._places[index])]

  def name(self, index: int) -> str:
    """Returns the name that it has in the source."""
    return self._source.name(int(self._places[index]))


def hold_out(source: sources.Source, share: float, *, seed: int) -> tuple[Part, Part]:
  """The records of a source, split at random: all but a share, and that share.

  Args:
    source: of two records at least.
    share: within 0..1; each part has one record at least.
    seed: of the split.
  """
  order = np.random.default_rng(seed).permutation(len(source))
  count = min(max(round(share * len(source)), 1), len(source) - 1)
  return Part(source, np.sort(order[count:])), Part(source, np.sort(order[:count]))
