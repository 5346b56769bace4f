"""Mixture of sources: one endless stream, each source by its weight and in epochs."""

import bisect
import math
from collections.abc import Sequence

import grain
import numpy as np

from dinojax import errors
from dinojax.data import sources

MAX_RECORDS = 1 << 32  # of a source: Grain shuffles indices of 32 bits


class Mixture:
  """Sources, with one range of record numbers over all of them."""

  def __init__(self, parts: Sequence[sources.Source], weights: Sequence[float]):
    """weights: above 0; a source's share of the stream is its part of their sum."""
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
    """The fingerprints of the sources, in their order."""
    return [part.fingerprint for part in self._parts]

  def __len__(self) -> int:
    """Returns the number of records of all sources."""
    return self._starts[-1]

  def __str__(self) -> str:
    """Returns each source with its size and, if there are others, its share."""
    return ", ".join(
      f"{len(part):,} images of {part.where}"
      + (f" ({share:.1%})" if len(self._parts) > 1 else "")
      for part, share in self._shares()
    )

  def small_sources(self, batch_size: int) -> list[str]:
    """Returns a line for each source that a batch holds several times."""
    return [
      f"{part.where} has {len(part):,} images, of which a batch of {batch_size:,} takes"
      f" {batch_size * share:,.0f}: it holds each about"
      f" {batch_size * share / len(part):.1f} times; add images, or lower"
      " config.data.batch_size"
      for part, share in self._shares()
      if len(part) < batch_size * share
    ]

  def _shares(self) -> list[tuple[sources.Source, float]]:
    """Each source with its share of the stream."""
    whole = sum(self._weights)
    return [
      (part, weight / whole)
      for part, weight in zip(self._parts, self._weights, strict=True)
    ]

  def locate(self, record: int) -> tuple[sources.Source, int]:
    """Returns the source of a record, and its index there."""
    part = bisect.bisect_right(self._starts, record) - 1
    return self._parts[part], record - self._starts[part]

  def name(self, record: int) -> str:
    """Returns the record's name, with its source if there are several."""
    source, index = self.locate(record)
    if len(self._parts) == 1:
      return source.name(index)
    return f"{source.name(index)} of {source.where}"

  def order(self, seed: int) -> grain.MapDataset:
    """Returns the endless stream of record numbers; jumps to any place cost nothing.

    Each source is reshuffled after every pass, so that small ones repeat more often.
    In any window of the stream, a source's number of records is its share of them, to
    within the number of sources.
    """
    seeds = np.random.SeedSequence(seed).generate_state(len(self._parts))
    streams = [
      grain.MapDataset.range(start, start + len(part)).seed(int(own)).shuffle().repeat()
      for part, start, own in zip(self._parts, self._starts[:-1], seeds, strict=True)
    ]
    # Grain rounds weights to hundredths of the smallest.
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
