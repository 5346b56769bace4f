"""Several sources as one endless stream, each with its share and epochs of its own."""

import bisect
import math
from collections.abc import Sequence

import grain
import numpy as np

from dinojax import errors
from dinojax.data import sources

MAX_RECORDS = 1 << 32  # of a source: Grain shuffles indices of 32 bits


class Mixture:
  """Sources whose records are numbered through, in their order."""

  def __init__(self, parts: Sequence[sources.Source], weights: Sequence[float]):
    """weights: of each part in the stream, relative to each other, above 0."""
    self._parts = tuple(parts)
    self._weights = tuple(weights)
    self._starts = np.cumsum([0, *map(len, parts)]).tolist()
    for part in parts:
      if len(part) > MAX_RECORDS:
        raise errors.UserError(
          f"{part.where} has {len(part)} records, more than {MAX_RECORDS}; split it"
        )

  @property
  def fingerprints(self) -> list[str]:
    """Those of the sources, in their order."""
    return [part.fingerprint for part in self._parts]

  def __len__(self) -> int:
    """Returns the number of records of all sources."""
    return self._starts[-1]

  def __str__(self) -> str:
    """Tells each source with its size and, if there are others, its share."""
    whole = sum(self._weights)
    return ", ".join(
      f"{len(part):,} images of {part.where}"
      + (f" ({weight / whole:.1%})" if len(self._parts) > 1 else "")
      for part, weight in zip(self._parts, self._weights, strict=True)
    )

  def locate(self, record: int) -> tuple[sources.Source, int]:
    """Returns the source of a record, and the number that it has there."""
    part = bisect.bisect_right(self._starts, record) - 1
    return self._parts[part], record - self._starts[part]

  def name(self, record: int) -> str:
    """Returns the record's name in its source, and which one that is."""
    source, index = self.locate(record)
    if len(self._parts) == 1:
      return source.name(index)
    return f"{source.name(index)} of {source.where}"

  def order(self, seed: int) -> grain.MapDataset:
    """The endless stream of record numbers; any place of it takes the same time.

    Every epoch of a source is a new permutation of it. In the first k records, and so
    in any window, each source has its share to within as many records as there are
    sources.
    """
    seeds = np.random.SeedSequence(seed).generate_state(len(self._parts))
    streams = [
      grain.MapDataset.range(start, start + len(part)).seed(int(own)).shuffle().repeat()
      for part, start, own in zip(self._parts, self._starts[:-1], seeds, strict=True)
    ]
    # Grain takes whole numbers of hundredths of the least weight.
    return grain.MapDataset.mix(streams, self._weights).seed(seed)


def open_mixture(specs: Sequence[str], weights: Sequence[float]) -> Mixture:
  """Opens config.data.sources, mixed by config.data.weights.

  Raises:
    errors.UserError: a source will not open, or the weights are not one for each.
  """
  if not specs:
    raise errors.UserError("config.data.sources is empty; give folder:PATH")
  if len(weights) != len(specs):
    raise errors.UserError(
      f"config.data.weights={tuple(weights)} must be one for each of {len(specs)}"
      f" config.data.sources; try {(1.0,) * len(specs)}"
    )
  if not all(0 < weight < math.inf for weight in weights):
    raise errors.UserError(
      f"config.data.weights={tuple(weights)} must be above 0; leave a source out of"
      " config.data.sources to have none of it"
    )
  opened = [
    sources.open_source(spec, field=f"config.data.sources[{i}]")
    for i, spec in enumerate(specs)
  ]
  return Mixture(opened, weights)
