"""Sets of labels: a source whose images have any number of classes each."""

from collections.abc import Sequence

import numpy as np

from dinojax import errors
from dinojax.data import sources


class LabelSets:
  """A source whose label numbers the set of an image's classes.

  So all that reads labelled images reads it too. sets: uint8 [K, C], for each of the K
  different sets of the source 1 where a class is in it.
  """

  def __init__(self, source: sources.Source, class_names: Sequence[str]):
    """Numbers the sets.

    Args:
      source: with `label_sets`, as csv_table.py has them.
      class_names: all C classes, in order.

    Raises:
      UserError: it has no sets, or a class that is not among them.
    """
    if not hasattr(source, "label_sets"):
      raise errors.UserError(
        f"{source.where} has one label for each image; give csv:FILE, whose column"
        " label may have several, or --task=classes"
      )
    if lacking := sorted(set(source.class_names) - set(class_names)):
      raise errors.UserError(
        f"{source.where} has {len(lacking)} classes that --train lacks, such as"
        f" {lacking[0]!r}; both must have the same"
      )
    self._source = source
    self.where, self.notes = source.where, source.notes
    self.class_names, self.fingerprint = tuple(class_names), source.fingerprint
    number = {name: i for i, name in enumerate(self.class_names)}
    place = [number[name] for name in source.class_names]
    numbers = {}
    labels = [numbers.setdefault(x, len(numbers)) for x in source.label_sets]
    self.labels = np.array(labels, np.int32)
    self.sets = np.zeros((len(numbers), len(class_names)), np.uint8)
    for members, i in numbers.items():
      self.sets[i, [place[x] for x in members]] = 1

  def __len__(self) -> int:
    """Returns the number of images."""
    return len(self._source)

  def __getitem__(self, index: int) -> dict:
    """Reads one image; its label is a row of `sets`."""
    return self._source[index] | {"label": int(self.labels[index])}

  def name(self, index: int) -> str:
    """Returns the name of an image."""
    return self._source.name(index)
