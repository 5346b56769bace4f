"""Summary of a run for its page: verdict, what ran and how fast, events, evaluations.

Free of JAX. A fact that the files do not have is "not known".
"""

import json
from collections.abc import Iterator

import numpy as np

from dinojax.pages import (
  hours,
  markup,
  run_files,
  run_record,
  tuned,
  verdict,
  wording,
)
from dinojax.reporting import published

MAX_EVENTS = 300  # rows
RECENT = 50  # logged steps whose rates are averaged
# What an event says besides step and text.
TOLD = {
  "start": "training starts",
  "checkpoint": "saved",
  "comparison": "k-NN beside the untrained network and raw pixels",
  "done": "complete",
}


def describe_verdict(run: run_record.Run, *, now: float) -> markup.Html:
  """The state of the run in a sentence, and what to do."""
  judged = verdict.judge(run, now=now)
  advice = [markup.tag("li", line) for line in judged.advice]
  return markup.tag(
    "div",
    markup.tag("p", judged.sentence),
    *([markup.tag("ul", *advice)] if advice else []),
    class_=f"verdict {judged.kind}",
    id="verdict",
  )


def describe_facts(run: run_record.Run) -> markup.Html:
  """The facts, in one column or two."""
  pairs = [
    markup.tag("div", markup.tag("dt", what), markup.tag("dd", value))
    for what, value in facts(run)
  ]
  return markup.tag("dl", *pairs, class_="facts")


def facts(run: run_record.Run) -> Iterator[tuple[str, str]]:
  """(what, value) of a run, in words."""
  start = run.last_event("start") or {}
  step, batch, total = run.step, run.batch_size, run.total_steps
  of = f" of {total:,}" if total else ""
  yield "steps", f"{step:,}{of}"
  images = step * batch if batch else None
  each = f", {batch:,} a step" if images else ""
  yield "images seen", f"{wording.number(images)}{each}"
  known = hours.hours_at_work(run)
  work = float(known[1][-1]) * 3600 if known else None
  pauses = ", without pauses" if known and hours.restarts(run) else ""
  yield "time at work", f"{wording.duration(work)}{pauses}"
  rate = recent(run, "images_per_second")
  yield "recent throughput", f"{wording.number(rate, 3)}{' images/s' if rate else ''}"
  yield "devices waited for data", wording.share(recent(run, "data_wait_share"))
  best = run.best_knn()
  if run.field("finetune"):
    yield "best accuracy", tuned.describe_best(run)
  elif best:
    name, at, share = best
    others = [f"{k} {wording.share(v)}" for k, v in run.baselines(name).items()]
    found = f"{wording.share(share)} at step {at:,} ({name})"
    yield "best k-NN top-1", "; ".join([found, *others])
  else:
    yield "best k-NN top-1", "not measured"
  linear = run.value("linear")
  if linear is not None:
    others = [f"{k} {wording.share(v)}" for k, v in run.baselines("linear").items()]
    yield "linear probe", "; ".join([wording.share(linear), *others])
  if run.field("knn.every") or run.evaluation_images:
    yield "evaluation images", _evaluation_images(run)
  parameters = start.get("parameters")
  if isinstance(parameters, dict) and parameters:
    sizes = {name: run_record.field(parameters, name) for name in parameters}
    parts = [f"{name} {wording.large(size)}" for name, size in sizes.items()]
    yield "parameters", wording.listed(parts)
  else:
    yield "parameters", wording.NOT_KNOWN
  yield "devices", _devices(start)
  yield "data", start.get("data", _sources(run))
  starts = [event for event in run.events if event["event"] == "start"]
  yield "started", wording.moment(starts[0]["time"] if starts else None)
  yield "restarts", _restarts(run, starts)
  saved = [f"{step:,}" for step in run.checkpoints]
  yield "checkpoints on disk", wording.listed(saved) if saved else "none"
  if run.damaged:
    yield "damaged checkpoints", wording.listed(run.damaged)
  skipped = [event for event in run.events if event["event"] == "skipped"]
  if skipped:
    yield "skipped records", f"{len(skipped):,} noted, see events"
  if run.not_finite:
    yield (
      "not drawn",
      f"values that are not finite, of {wording.listed(run.not_finite)}",
    )


def recent(run: run_record.Run, name: str) -> float | None:
  """Median of the last logged values of a series; None if there are none."""
  series = run.series.get(name)
  return float(np.median(series.values[-RECENT:])) if series else None


def _evaluation_images(run) -> str:
  counts = run.evaluation_images or (None, None)
  parts = [
    f"{name} {wording.number(count)} ({_source(run.field(f'knn.{name}'))})"
    for name, count in zip(("train", "test"), counts, strict=True)
  ]
  one = [f"each is {100 / counts[1]:.2g}% of accuracy"] if counts[1] else []
  return "; ".join([*parts, *one])


def _source(spec) -> str:
  return spec if isinstance(spec, str) else wording.NOT_KNOWN


def _devices(start) -> str:
  mesh, kind = start.get("mesh"), start.get("device")
  if not isinstance(mesh, dict) or kind is None:
    return wording.NOT_KNOWN
  sizes = {name: wording.number(run_record.field(mesh, name)) for name in mesh}
  shape = " x ".join(f"{name} {size}" for name, size in sizes.items())
  count = run_record.field(start, "processes") or 1
  return f"{kind}, mesh {shape}, {count:.0f} process{'es' if count != 1 else ''}"


def _sources(run) -> str:
  return ", ".join(_strings(run.field("data.sources"))) or wording.NOT_KNOWN


def _restarts(run, starts) -> str:
  if not starts:
    return wording.NOT_KNOWN
  steps = [f"{step:,}" for step in hours.restarts(run)]
  if not steps:
    return "none"
  changed = [start["extended"] for start in starts if start.get("extended")]
  return "; ".join(
    [
      f"{len(steps)}, at step {wording.listed(steps[-10:])}",
      f"the last on {wording.moment(starts[-1]['time'])}",
      *changed[-1:],
    ]
  )


def describe_events(run: run_record.Run) -> markup.Html:
  """The events, the newest first."""
  if not run.events:
    return markup.tag(
      "p",
      "This run has no events.jsonl: restarts, alarms and skipped records are not"
      " known.",
      class_="faint",
    )
  shown = run.events[: -MAX_EVENTS - 1 : -1]
  rows = [
    (
      wording.moment(event["time"]),
      f"{event['step']:,}" if "step" in event else "",
      event["event"],
      _told(event),
    )
    for event in shown
  ]
  left = len(run.events) - len(shown)
  note = (
    [markup.tag("p", f"{left:,} older events are in events.jsonl.")] if left else []
  )
  table = markup.table(rows, head=("time", "step", "event", "what"))
  return markup.join([table, *note])


def _told(event) -> str:
  text = event.get("text") or event.get("signal") or TOLD.get(event["event"], "")
  notes = [event.get("extended"), *_strings(event.get("doubts"))]
  return "; ".join([text[:1000], *(note for note in notes if note)])


def _strings(value) -> list[str]:
  return [x for x in value if isinstance(x, str)] if isinstance(value, list) else []


def describe_evaluations(run: run_record.Run) -> markup.Html | None:
  """What evaluate.py has added to the run; None if that is nothing."""
  if not run.evaluations:
    return None
  rows = []
  for found in run.evaluations[-100:]:
    fields = {
      name.removeprefix(run_files.EVALUATION): value
      for name, value in found.items()
      if name.startswith(run_files.EVALUATION)
    }
    shown = [f"{name} {_value(value)}" for name, value in fields.items()]
    rows.append((f"{found['step']:,}", "; ".join(shown)[:2000]))
  tables = _published(run.evaluations)
  return markup.join(
    [*tables, markup.table(rows, head=("step", "results and settings"))]
  )


def _published(evaluations) -> Iterator[markup.Html]:
  """A table for each data set of suites at its newest step, with published models."""
  newest: dict[str, tuple[int, dict]] = {}
  for line in evaluations:
    data, step = line.get(f"{run_files.EVALUATION}data"), line["step"]
    if not isinstance(data, str):
      continue
    known, found = newest.get(data, (step, {}))
    if step < known:
      continue
    numbers = {
      name.removeprefix(run_files.EVALUATION): value
      for name, value in line.items()
      if isinstance(value, float)
    }
    newest[data] = step, (found if step == known else {}) | numbers
  for data, (step, found) in newest.items():
    if tasks := published.columns(found):
      head = (f"{data}, step {step:,}", *(published.TASKS[x] for x in tasks), "source")
      yield markup.table(published.rows(data, found), head=head)


def _value(value) -> str:
  return wording.number(value) if isinstance(value, float) else str(value)


def describe_config(run: run_record.Run) -> markup.Html:
  """The config, closed at first."""
  if run.config is None:
    return markup.tag("p", "config.json cannot be read.", class_="faint")
  text = json.dumps(run.config, indent=2)
  return markup.tag(
    "details", markup.tag("summary", "all fields"), markup.tag("pre", text)
  )
