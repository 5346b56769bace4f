"""Metrics of a run: JSON lines, and loggers such as TensorBoard. Process 0 writes."""

import contextlib
import json
import os
import pathlib
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dinojax import errors
from dinojax.reporting import loggers

SECONDS_BETWEEN_SYNCS = 60  # of files of metrics


class Writer:
  """Scalars to WORKDIR/metrics.jsonl and to loggers, such as TensorBoard.

  A line is {"step": completed updates, name: value, ...}. It is written at once, so a
  killed run loses none. `sync` makes a mounted bucket upload it, once a minute.
  """

  def __init__(
    self,
    workdir: str,
    *,
    start_step: int | None,
    names: Sequence[str] = ("tensorboard",),
    config: dict[str, Any] | None = None,
  ):
    """Opens the files; drops what was logged after `start_step`, where a run resumes.

    Args:
      workdir: of the run.
      start_step: completed updates; None drops nothing, for results that are added to
        those of a run, even a live one.
      names: config.loggers.
      config: of the run, for loggers that show it.
    """
    self._file, self._loggers = None, []
    self._synced = time.monotonic()
    if jax.process_index() != 0:
      return
    self._workdir = pathlib.Path(workdir)
    with self._failing_in_one_line():
      path = self._workdir / "metrics.jsonl"
      if start_step is not None:
        self._drop_after(start_step, path)
      self._file = path.open("a", buffering=1)
      self._loggers = loggers.open_loggers(
        names, self._workdir, start_step=start_step, config=config
      )

  def write(
    self,
    step: int,
    scalars: dict[str, float],
    *,
    about: Mapping[str, str | float] = types.MappingProxyType({}),
  ) -> None:
    """Appends one line; floats keep all their digits.

    Args:
      step: completed updates.
      scalars: numbers by name.
      about: what else the line says, and loggers do not.

    Raises:
      UserError: it cannot be written.
    """
    if self._file is None:
      return
    with self._failing_in_one_line():
      self._file.write(json.dumps({"step": step, **scalars, **about}) + "\n")
      for logger in self._loggers:
        logger.write(step, scalars)
    if time.monotonic() - self._synced > SECONDS_BETWEEN_SYNCS:
      self.sync()

  def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
    """Writes images, uint8 [H, W, 3] by name, to loggers; otherwise as `write`."""
    if self._file is None:
      return
    with self._failing_in_one_line():
      for logger in self._loggers:
        logger.write_images(step, images)

  def sync(self) -> None:
    """Returns when all is on disk, or in the bucket; UserError if it fails."""
    if self._file is None:
      return
    with self._failing_in_one_line():
      os.fsync(self._file.fileno())
      for logger in self._loggers:
        logger.sync()
    self._synced = time.monotonic()

  def close(self, exit_code: int = 0) -> None:
    """Flushes and closes all. exit_code: that the run ends with, for loggers."""
    if self._file is not None:
      with self._failing_in_one_line():
        self._file.close()
        for logger in self._loggers:
          logger.close(exit_code)

  def _drop_after(self, step: int, path: pathlib.Path) -> None:
    kept = []
    if path.exists():
      for line in path.read_text().splitlines():
        # A line that a kill has cut off is no JSON, or none of ours.
        with contextlib.suppress(ValueError, TypeError, KeyError):
          if json.loads(line)["step"] <= step:
            kept.append(line + "\n")
    new = path.with_suffix(".new")
    new.write_text("".join(kept))
    os.replace(new, path)

  def _failing_in_one_line(self):
    return failing_in_one_line(self._workdir)


@contextlib.contextmanager
def failing_in_one_line(workdir: pathlib.Path):
  """Turns an OSError of writing metrics or events into a UserError."""
  try:
    yield
  except OSError as error:
    raise errors.of_disk(error)(
      f"cannot write metrics to {workdir} ({error.strerror}); make room there, or"
      " permit writing, and restart"
    ) from error
