"""Class names of two sources, matched so that labels of both mean the same classes.

Folders number their classes in the order of their names. A test set that lacks a class
would give other numbers to all classes behind it.
"""

import hashlib

import numpy as np

from dinojax import errors
from dinojax.data import sources


def match(train: sources.Source, other: sources.Source) -> sources.Source:
  """Returns `other` with labels that number the classes as `train` does.

  A source without class names is returned as it is. Numbers match as many names, and
  more, since a set may lack the last classes.

  Raises:
    errors.UserError: `other` has a class that `train` lacks.
  """
  known, own = train.class_names, other.class_names
  if not known or not own or own == known:
    return other
  lacking = sorted(set(own) - set(known))
  if not lacking:
    return _Renumbered(other, known)
  if _numbers(own) and len(own) <= len(known):
    return other
  if _numbers(known) and len(own) == len(known):
    return other
  raise errors.UserError(
    f"{other.where} has classes that {train.where} lacks ({len(lacking)} of {len(own)},"
    f" such as {lacking[0]!r}); both must hold the same ones"
  )


def _numbers(names: tuple[str, ...]) -> bool:
  """Returns whether the names say no more than the labels."""
  return names == tuple(map(str, range(len(names))))


class _Renumbered:
  """A source with the labels of other class names, which include its own."""

  def __init__(self, source: sources.Source, class_names: tuple[str, ...]):
    number = {name: i for i, name in enumerate(class_names)}
    self._source = source
    self._labels = [number[name] for name in source.class_names]
    self.labels = source.labels
    if source.labels is not None:
      self.labels = np.array([*self._labels, -1])[np.maximum(source.labels, -1)]
    self.where, self.notes = source.where, source.notes
    self.class_names = class_names
    # Features are kept with their labels.
    identity = f"{source.fingerprint} {self._labels}"
    self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict:
    record = self._source[index]
    label = record["label"]
    return record | {"label": self._labels[label] if label >= 0 else -1}

  def name(self, index: int) -> str:
    return self._source.name(index)
