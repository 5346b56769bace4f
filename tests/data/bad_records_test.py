"""A corrupt record is substituted by one that the record alone decides, and named."""

import errno
import logging

import numbered
import numpy as np
import pytest

from dinojax import errors
from dinojax.data import bad_records


class Half:
  """Records below 50 are corrupt; image i is filled with i."""

  where = 'config.data.source="half"'

  def __init__(self, good=range(50, 100)):
    self.good = good

  def __len__(self):
    return 100

  def __getitem__(self, index):
    if index not in self.good:
      raise OSError("no such block")
    return {"image": np.full((1, 1, 3), index, np.uint8), "label": 7}

  def name(self, index):
    return f"record {index}"


def test_a_substitute_depends_on_the_record_alone():
  def substitutes():
    return [int(numbered.read(Half(), i, attempts=32)[0][0, 0, 0]) for i in range(50)]

  chosen = substitutes()
  assert chosen == substitutes()
  assert len(set(chosen)) > 20  # Different records take different substitutes.


def test_a_source_without_a_readable_record_ends_with_one_line():
  with pytest.raises(errors.UserError) as raised:
    bad_records.read_or_substitute(Half(good=()), 3, attempts=4)
  assert str(raised.value) == (
    'config.data.source="half": record 3 is corrupt (no such block), and so are 3'
    " records tried in its place; check that these are images"
  )


def reports(size, *bad):
  """The entry of a batch of so many records, of which some are corrupt."""
  sound = [bad_records.report()] * (size - len(bad))
  return np.stack([*(bad_records.report(i, "no\nimage") for i in bad), *sound])


def test_a_bad_record_is_named_once(caplog):
  monitor = bad_records.Monitor(numbered.Numbers(100), max_bad_share=0.01)
  with caplog.at_level(logging.WARNING):
    monitor.update(reports(64, 5, 3))
    monitor.update(reports(64, 3))
  assert caplog.messages == [
    "corrupt record substituted: numbers#3: no image",
    "corrupt record substituted: numbers#5: no image",
  ]
  assert (monitor.bad_reads, monitor.reads) == (3, 128)


def test_a_single_bad_record_never_ends_a_run():
  for share in (0.0, 0.0001, 0.5):
    monitor = bad_records.Monitor(numbered.Numbers(9), max_bad_share=share)
    monitor.update(reports(2, 1))
    assert (monitor.bad_reads, monitor.reads) == (1, 2)


def test_too_large_a_share_of_bad_records_ends_the_run():
  monitor = bad_records.Monitor(numbered.Numbers(9_999), max_bad_share=0.01)
  for step in range(20):  # 1% of 2,000 records is allowed.
    monitor.update(reports(100, step))
  with pytest.raises(errors.UserError, match=r"config.data.max_bad_share=0.01") as e:
    monitor.update(reports(2, 30, 31))
  assert str(e.value).startswith("22 of 2002 reads met a corrupt record")
  assert "\n" not in str(e.value)


def test_a_lost_shard_is_told_of_in_a_few_lines_and_named_in_full_on_request(caplog):
  monitor = bad_records.Monitor(numbered.Numbers(9_999), max_bad_share=0.5)
  with caplog.at_level(logging.INFO):
    for first in range(0, 1000, 50):
      monitor.update(reports(200, *range(first, first + 50)))
      monitor.update(reports(200, *range(first, first + 50)))
  names = [x.getMessage() for x in caplog.records if "substituted" in x.getMessage()]
  assert names == [
    f"corrupt record substituted: numbers#{i}: no image" for i in range(1000)
  ]
  assert {x.event for x in caplog.records} == {"skipped"}  # events of the run
  warnings = [x.getMessage() for x in caplog.records if x.levelno >= logging.WARNING]
  assert warnings[:20] == names[:20]
  assert [int(line.split()[0]) for line in warnings[20:]] == [20, 40, 80, 160, 320, 640]
  assert all("--verbosity=0 names all" in line for line in warnings[20:])


def test_a_few_bad_records_at_the_start_are_no_share_yet():
  monitor = bad_records.Monitor(numbered.Numbers(9_999), max_bad_share=0.01)
  monitor.update(reports(16, *range(10)))
  with pytest.raises(errors.UserError):
    monitor.update(reports(16, 11))


def test_data_that_are_out_of_reach_are_never_substituted():
  class Away(Half):
    def __getitem__(self, index):
      raise OSError(errno.ESTALE, "Stale file handle")

  with pytest.raises(errors.TemporaryError) as raised:
    bad_records.read_or_substitute(Away(), 3)
  assert str(raised.value) == (
    'config.data.source="half" is out of reach ([Errno 116] Stale file handle); when'
    " the data are back, restart the same command"
  )
