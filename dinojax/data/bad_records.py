"""Corrupt records: substituted in training, skipped in evaluation, named and counted.

Data that are out of reach are not corrupt: they end the command, to be restarted.

A batch carries a report of each of its records, so that worker processes stay silent
and the training process logs each corrupt record once, with its name and the reason.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dinojax import errors
from dinojax.data import images, mixture, sources

ATTEMPTS = 16  # records read before giving up, the wanted one included
MIN_RECORDS = 1_000  # a share of fewer records says nothing
EVENT = {"event": "skipped"}  # of a run, see reporting/events.py
NAMED = 20  # corrupt records, of a process: a lost shard would fill the log
# The entry "bad_records" of a batch. record: index of a corrupt record, or -1.
REPORT = np.dtype([("record", np.int64), ("reason", "S240")])


def report(record: int = -1, reason: str = "") -> np.ndarray:
  """Returns a REPORT [], by default that the record is sound."""
  text = " ".join(reason.split()).encode(errors="backslashreplace")
  return np.array((record, text), REPORT)


def raise_if_lost(error: Exception, where: str) -> None:
  """Raises TemporaryError if reading has failed since the data are out of reach.

  Their server does not answer, or the folder of the file is gone, or empty as one where
  nothing is mounted any more. A file that is missing alone is a corrupt record.

  Args:
    error: one of UNREADABLE, of a source.
    where: of the source.
  """
  if not isinstance(error, OSError):
    return
  lost = error.errno in errors.OUT_OF_REACH
  if error.errno in (errno.ENOENT, errno.ENOTDIR) and error.filename:
    lost = not _holds_something(os.path.dirname(error.filename) or ".")
  if lost:
    reason = errors.printable(" ".join(str(error).split()))
    raise errors.TemporaryError(
      f"{where} is out of reach ({reason}); when the data are back, restart the same"
      " command"
    ) from error


def _holds_something(folder: str) -> bool:
  try:
    with os.scandir(folder) as entries:
      return any(True for _ in entries)
  except OSError:
    return False


def messages(
  source: sources.Source | mixture.Mixture, reports: np.ndarray
) -> Iterator[tuple[int, str]]:
  """Yields (index, "NAME: REASON") of each corrupt record among REPORTs [b]."""
  for record, reason in reports[reports["record"] >= 0].tolist():
    yield record, f"{source.name(record)}: {reason.decode(errors='replace')}"


def read_or_substitute(
  source: sources.Source,
  index: int,
  *,
  attempts: int = ATTEMPTS,
  make: Callable[[bytes | np.ndarray], Any] = images.decode,
) -> tuple[Any, int, str | None]:
  """Returns what is made of an image or, if it is corrupt, of a substitute.

  Args, and what is raised, as of `make_or_substitute`; make: of the image as stored.

  Returns:
    what was made, its label, and why the wanted record is corrupt; None if it is sound.
  """
  (made, label), reason = make_or_substitute(
    source,
    index,
    attempts=attempts,
    make=lambda record: (make(record["image"]), record["label"]),
  )
  return made, label, reason


def make_or_substitute(
  source: sources.Source,
  index: int,
  *,
  attempts: int = ATTEMPTS,
  make: Callable[[dict], Any],
) -> tuple[Any, str | None]:
  """Returns what is made of a record or, if it is corrupt, of a substitute.

  The substitute of attempt a is a pure function of (len(source), index, a), so that
  the stream neither shifts nor depends on who reads.

  Args:
    source: where to read.
    index: the wanted record.
    attempts: records to try, the wanted one included.
    make: function of the record; raises one of UNREADABLE if it is damaged.

  Returns:
    what was made, and why the wanted record is corrupt; None if it is sound.

  Raises:
    errors.UserError: none of the records tried is readable.
    errors.TemporaryError: the data are out of reach.
  """
  candidate, reason = index, None
  for attempt in range(attempts):
    try:
      return make(source[candidate]), reason
    except sources.UNREADABLE as error:
      raise_if_lost(error, source.where)
      reason = reason or str(error) or type(error).__name__
      draw = np.random.SeedSequence((index, attempt)).generate_state(1, np.uint64)[0]
      candidate = int(draw % np.uint64(len(source)))
  raise errors.UserError(
    f"{source.where}: {source.name(index)} is corrupt ({reason}), and so are"
    f" {attempts - 1} records tried in its place; check that these are images"
  )


class Log:
  """Names corrupt records: the first NAMED as warnings, the others at level INFO.

  A warning counts them whenever they have doubled.
  """

  def __init__(self, what: str):
    """what: has become of each, the beginning of its line."""
    self._what, self._count = what, 0

  def add(self, message: str) -> None:
    """Logs one record. message: of `messages`."""
    self._count += 1
    level = logging.WARNING if self._count <= NAMED else logging.INFO
    logging.log(level, "%s: %s", self._what, message, extra=EVENT)
    if self._count % NAMED == 0 and (self._count // NAMED).bit_count() == 1:
      line = "%d corrupt records so far; --verbosity=0 names all, not the first %d"
      logging.warning(line, self._count, NAMED, extra=EVENT)


class Monitor:
  """Logs the corrupt records of this process, and ends the run if they are many."""

  def __init__(self, source: mixture.Mixture, *, max_bad_share: float):
    """max_bad_share: of the records read; a larger share ends the run."""
    self._source = source
    self._max_bad_share = max_bad_share
    self._known = set()
    self._log = Log("corrupt record substituted")
    self.reads = 0
    self.bad_reads = 0

  def update(self, reports: np.ndarray) -> None:
    """Counts the reads of one batch, and logs each corrupt record the first time.

    A single corrupt record never ends a run, and the share is taken of at least
    MIN_RECORDS reads.

    Args:
      reports: REPORT [b], a batch's entry "bad_records".

    Raises:
      errors.UserError: too large a share of the reads met a corrupt record.
    """
    self.reads += len(reports)
    self.bad_reads += int((reports["record"] >= 0).sum())
    for index, message in sorted(messages(self._source, reports)):
      if index in self._known:
        continue
      self._known.add(index)
      self._log.add(message)
    limit = self._max_bad_share * max(self.reads, MIN_RECORDS)
    if self.bad_reads > max(limit, 1):
      raise errors.UserError(
        f"{self.bad_reads} of {self.reads} reads met a corrupt record, more than"
        f" config.data.max_bad_share={self._max_bad_share}; repair the data (the log"
        f" names the first {NAMED}, and all with --verbosity=0) or raise the share"
      )
