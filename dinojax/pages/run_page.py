"""Page of one run, or of several beside each other, from the files of their workdirs.

Free of JAX, so that it is written in a second.
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence

from dinojax import durable
from dinojax.pages import (
  charts,
  comparison,
  markup,
  page,
  panels,
  run_record,
  summary,
  wording,
)

NAME = "report.html"
AGE = (pathlib.Path(__file__).parent / "age.js").read_text()


def write(runs: Sequence[run_record.Run], out: pathlib.Path) -> None:
  """Writes the page of some runs, all or nothing; that of one with its pictures.

  Args:
    runs: at least one.
    out: the file.

  Raises:
    UserError: it cannot be written.
  """
  with durable.atomic_write(out, out=out) as file:
    file.write(page.encode(render(runs, now=time.time())))


def render(runs: Sequence[run_record.Run], *, now: float) -> str:
  """The page as `write` writes it. now: seconds since 1970."""
  if len(runs) == 1:
    return page.render(f"{runs[0].label} - dinojax", _of_one(runs[0], now))
  labels = comparison.names(runs)
  runs = [
    dataclasses.replace(run, label=label)
    for run, label in zip(runs, labels, strict=True)
  ]
  return page.render(f"{len(runs)} runs - dinojax", _of_several(runs, now))


def _of_one(run, now) -> list[page.Fragment]:
  top = markup.join(
    [
      markup.tag("h1", run.label),
      _written(now),
      summary.describe_verdict(run, now=now),
      summary.describe_facts(run),
    ]
  )
  evaluations = summary.describe_evaluations(run)
  bottom = [
    markup.tag("h2", "Events"),
    summary.describe_events(run),
    *([markup.tag("h2", "Evaluations"), evaluations] if evaluations else []),
    markup.tag("h2", "Config"),
    summary.describe_config(run),
  ]
  return [
    page.Fragment(top, script=AGE),
    charts.fragment([run]),
    *panels.of_folder(run.path / panels.FOLDER),
    page.Fragment(markup.join(bottom)),
  ]


def _of_several(runs, now) -> list[page.Fragment]:
  labels = [run.label for run in runs]
  top = markup.join(
    [
      markup.tag("h1", f"{len(runs)} runs"),
      _written(now),
      markup.tag("h2", "States and best numbers"),
      comparison.describe_numbers(runs, labels, now=now),
      markup.tag("h2", "Where the configs differ"),
      comparison.describe_differences(runs, labels),
    ]
  )
  return [page.Fragment(top, script=AGE), charts.fragment(runs)]


def _written(now) -> markup.Html:
  return markup.tag(
    "p",
    f"Written {wording.moment(now)}",
    markup.tag("span", id="age", data_written=f"{now:.0f}"),
    ".",
    class_="faint",
  )
