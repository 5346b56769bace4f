"""A source of numbered images for tests of batches, and batches compared."""

import contextlib
import dataclasses
import tracemalloc

import numpy as np

from dinojax.data import bad_records


@dataclasses.dataclass
class Numbers:
  """Image i is 3 x 4 pixels of colour i; those in `bad` are unreadable."""

  length: int
  bad: tuple = ()
  where = 'config.data.source="numbers"'
  class_names = tuple("01234")
  labels = None

  def __len__(self):
    return self.length

  def __getitem__(self, index):
    if index in self.bad:
      raise ValueError("damaged")
    return {"image": np.full((3, 4, 3), index, np.uint8), "label": index % 5}

  def name(self, index):
    return f"numbers#{index}"


def read(source, index, **options):
  """Image, label and reason of a record, or of its substitute."""
  return bad_records.read_or_substitute(source, index, **options)


def corrupt(source, records=None, **options):
  """Which records are substituted."""
  records = range(len(source)) if records is None else records
  return [i for i in records if read(source, i, **options)[2] is not None]


def assert_same(batches, expected):
  assert len(batches) == len(expected)
  for batch, other in zip(batches, expected, strict=True):
    assert batch.keys() == other.keys()
    for name in batch:
      assert batch[name].dtype == other[name].dtype
      np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


@contextlib.contextmanager
def memory_below(limit):
  """Fails if Python holds so many bytes more than before at any time."""
  tracemalloc.start()
  try:
    yield
    assert tracemalloc.get_traced_memory()[1] < limit
  finally:
    tracemalloc.stop()
