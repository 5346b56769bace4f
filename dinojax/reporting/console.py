"""Console of a run: log lines, the progress bar with throughput and ETA, and results.

Process 0 alone prints: results to stdout, the rest to stderr.
"""

import os
import sys
import time
from collections.abc import Callable

import jax
import tqdm

SECONDS_BETWEEN_LINES = 10  # of progress, where stderr is no terminal


def say(line: str) -> None:
  """Prints one line without tearing the progress bar."""
  if jax.process_index() == 0:
    tqdm.tqdm.write(line, file=sys.stderr)


def print_result(text: str) -> None:
  """Prints a result to stdout, without tearing the progress bar."""
  if jax.process_index() == 0:
    tqdm.tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def advancer(bar: tqdm.tqdm) -> Callable[[int], None]:
  """Returns a function that advances the bar; its first call starts the clock.

  So rate and ETA leave out compilation and the start of workers.
  """
  started = False

  def advance(count: int) -> None:
    nonlocal started
    if started:
      bar.update(count)
      return
    started = True
    bar.n += count
    bar.initial = bar.last_print_n = bar.n
    bar.unpause()

  return advance


class Progress:
  """A bar with step, loss, images/s, data wait and ETA; lines where no terminal is."""

  def __init__(self, *, total: int, start: int, label: str = "", shown: bool = True):
    """Shows `start` of `total` steps, unless it is not `shown`.

    label: of the figures, such as "small: ".
    """
    self._label = label
    self._lines = shown and not sys.stderr.isatty()
    self._last_line = time.perf_counter()
    self._bar = tqdm.tqdm(
      total=total,
      initial=start,
      unit="step",
      dynamic_ncols=True,
      disable=jax.process_index() != 0 or not shown,
      file=open(os.devnull, "w") if self._lines else sys.stderr,  # noqa: SIM115
    )
    self._advance = advancer(self._bar)

  def update(self, steps: int) -> None:
    """Advances by so many steps."""
    self._advance(steps)
    now = time.perf_counter()
    if self._lines and now - self._last_line > SECONDS_BETWEEN_LINES:
      self._last_line = now
      say(str(self._bar))

  def show(self, scalars: dict[str, float]) -> None:
    """Changes the figures beside the bar."""
    self._bar.set_postfix_str(
      f"{self._label}loss {scalars['loss']:.3f},"
      f" {scalars['images_per_second']:.0f} images/s,"
      f" {scalars['data_wait_share']:.0%} waiting for data"
    )

  def close(self) -> None:
    """Leaves the bar as it stands."""
    self._bar.close()
