"""Results of an evaluation: printed, and recorded in JSON and in a run's metrics.

Each task is printed and recorded as soon as its numbers are there, so that neither a
kill nor a later task loses them.
"""

from typing import Any

import jax

from dinojax import durable, errors
from dinojax.evals import table
from dinojax.reporting import console, metrics, published


class Results:
  """The results of one command; process 0 alone prints and writes."""

  def __init__(
    self, about: dict[str, Any], *, path: str | None, run: tuple[str, int] | None
  ):
    """Opens no file yet.

    Args:
      about: what is evaluated, and how; JSON.
      path: JSON file of all results, rewritten after each task; None: none.
      run: (workdir, step) whose metrics get the numbers; None: no run.
    """
    self._about, self._path, self._run = about, path, run
    self._results: dict[str, Any] = {}
    self._writer: metrics.Writer | None = None

  def add(
    self, found: dict[str, Any], settings: dict[str, Any], *, data: str = ""
  ) -> None:
    """Prints the numbers of a task on stdout and records them.

    A run whose metrics cannot be written gives a note: it may be read-only.

    Args:
      found: what the task returns.
      settings: what else the numbers depend on, for the run's metrics.
      data: name of the data set, if there may be several: its results are a group of
        their own in the JSON.

    Raises:
      UserError: the JSON file cannot be written.
    """
    results = self._results.setdefault(data, {}) if data else self._results
    results |= found
    if jax.process_index() != 0:
      return
    heading = f"{data}\n" if data else ""
    print(heading + table.render(found), flush=True)
    if self._path:
      content = {**self._about, "results": self._results}
      durable.write_json(self._path, content, flag="--results")
    if self._run:
      self._add_to_run(found, settings)

  def compare(self) -> None:
    """Prints the results of all data sets beside published ones."""
    if jax.process_index() == 0:
      for data, found in self._results.items():
        print(published.render(data, found), flush=True)

  def close(self) -> None:
    """Closes the run's metrics, and says that they have the numbers."""
    if self._writer:
      workdir, step = self._run
      self._writer.close()
      console.say(f"added to {workdir}/metrics.jsonl as step {step}")

  def _add_to_run(self, found, settings):
    workdir, step = self._run
    try:
      if self._writer is None:
        self._writer = metrics.Writer(workdir, start_step=None)
      numbers = {f"eval_{k}": v for k, v in found.items() if isinstance(v, float)}
      about = {f"eval_{k}": v for k, v in settings.items() if v is not None}
      self._writer.write(step, numbers, about=about)
    except errors.UserError as error:
      console.say(f"note: the results are not added to the run: {error}")
      self._run = self._writer = None
