"""Comparison of runs: fields in which configs differ, best numbers. Free of JAX."""

import json
from collections.abc import Sequence
from typing import Any

from dinojax.pages import hours, markup, run_record, summary, tuned, verdict, wording

MISSING = "not there"
MAX_ROWS = 400
TUNED = "best accuracy, fine-tuned"


def names(runs: Sequence[run_record.Run]) -> list[str]:
  """A name for each run, by which the page tells them apart: folders, or more of paths.

  Runs of the same folder's name get what comes before it.
  """
  paths = [run.path.resolve().parts for run in runs]
  for depth in range(1, max(map(len, paths)) + 1):
    found = ["/".join(parts[-depth:]) for parts in paths]
    if len(set(found)) == len(found):
      return found
  return [f"{'/'.join(parts)} ({i})" for i, parts in enumerate(paths, 1)]


def differences(
  configs: Sequence[dict[str, Any] | None],
) -> list[tuple[str, list[str]]]:
  """(path of a field, its value in each config) where they are not all the same."""
  flat = [dict(_leaves(config or {}, "")) for config in configs]
  paths = dict.fromkeys(path for fields in flat for path in fields)
  rows = [(path, [fields.get(path, MISSING) for fields in flat]) for path in paths]
  return [(path, values) for path, values in rows if len(set(values)) > 1]


def _leaves(tree, path):
  for name, value in tree.items():
    full = f"{path}.{name}" if path else str(name)
    if isinstance(value, dict) and value:
      yield from _leaves(value, full)
    else:
      yield full, json.dumps(value)


def describe_differences(
  runs: Sequence[run_record.Run], labels: Sequence[str]
) -> markup.Html:
  """The table of fields that differ."""
  unread = [label for run, label in zip(runs, labels, strict=True) if not run.config]
  parts = []
  if unread:
    text = f"config.json cannot be read: {wording.listed(unread)}."
    parts.append(markup.tag("p", text, class_="faint"))
  rows = [
    (path, *(value[:300] for value in values))
    for path, values in differences([run.config for run in runs])
  ]
  if not rows:
    return markup.join([*parts, markup.tag("p", "The configs do not differ.")])
  if len(rows) > MAX_ROWS:
    text = f"The first {MAX_ROWS} of {len(rows):,} fields that differ."
    parts.append(markup.tag("p", text, class_="faint"))
  table = markup.table(rows[:MAX_ROWS], head=("field of the config", *labels))
  return markup.join([*parts, table])


def describe_numbers(
  runs: Sequence[run_record.Run], labels: Sequence[str], *, now: float
) -> markup.Html:
  """The table of states and best numbers, a column for each run."""
  columns = [_numbers(run, now) for run in runs]
  rows = [(what, *(column[what] for column in columns)) for what in columns[0]]
  if not any(run.field("finetune") for run in runs):
    rows = [row for row in rows if row[0] != TUNED]
  return markup.table(rows, head=("", *labels))


def _numbers(run, now) -> dict[str, str]:
  best, known = run.best_knn(), hours.hours_at_work(run)
  batch, rate = run.batch_size, summary.recent(run, "images_per_second")
  images = run.step * batch if batch else None
  knn = f"{wording.share(best[2])} at step {best[1]:,}" if best else "not measured"
  linear = run.value("linear")
  return {
    "state": verdict.judge(run, now=now).state,
    "best k-NN top-1": f"{knn}{f' ({best[0]})' if best else ''}",
    TUNED: tuned.describe_best(run),
    "linear probe at the end": "not measured" if linear is None else f"{linear:.1%}",
    "evaluation images": _evaluation_images(run),
    "steps": f"{run.step:,}",
    "images seen": wording.number(images),
    "time at work": wording.duration(known[1][-1] * 3600 if known else None),
    "recent throughput, images/s": wording.number(rate, 3),
    "newest DINO loss": wording.number(run.value("loss_dino")),
    "newest iBOT loss": wording.number(run.value("loss_ibot")),
    "newest teacher entropy": wording.number(run.value("teacher_entropy")),
    "nothing learnt at DINO + iBOT loss": wording.number(run.nothing_learnt),
  }


def _evaluation_images(run) -> str:
  found = run.evaluation_images
  return f"{found[0]:,} train, {found[1]:,} test" if found else wording.NOT_KNOWN
