"""Curves of runs as a page draws them: which numbers share a chart, levels, units.

Free of JAX.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dinojax.pages import hours, run_record, thinning, tuned
from dinojax.reporting import alarm

SUM = "loss_dino + loss_ibot"


class Kind(NamedTuple):
  """A kind of chart.

  title. label: of the y axis, with its unit; of shares it ends in (%), and they are
  drawn as 100 times their value. names: of numbers, whole, or as they begin (*). hint:
  what to look for. scale: "linear" or "log".
  """

  title: str
  label: str
  names: tuple[str, ...]
  hint: str = ""
  scale: str = "linear"


KINDS = (
  Kind(
    "Accuracy of the fine-tuned network",
    "share (%)",
    ("test_*", "val_*", "train_*"),
    "On --test and --val: the higher, the better. train: on the crops of a step, with"
    " what augmentation makes of them.",
  ),
  Kind(
    "DINO + iBOT loss",
    "loss (nats)",
    (SUM,),
    "Falls from the level of nothing learnt, and stays far above that of collapse.",
  ),
  Kind(
    "k-NN top-1 of the teacher",
    "accuracy (%)",
    ("knn_top1*",),
    "Labelled images classified by their nearest neighbours: the higher, the better.",
  ),
  Kind(
    "Patches of the teacher, k-NN segmentation",
    "share (%)",
    ("knn_segmentation*",),
    "Mean IoU of the classes, and pixels that are right: the higher, the better.",
  ),
  Kind(
    "Teacher entropy",
    "entropy (nats)",
    ("teacher_entropy",),
    "Of the targets. Near 0 each image has a single prototype, at the upper level all.",
  ),
  Kind("Loss parts", "loss (nats)", ("loss_dino", "loss_ibot"), "Unweighted."),
  Kind(
    "Gram loss",
    "mean squared difference (no unit)",
    ("loss_gram",),
    "How far the cosines of pairs of patches are from the Gram teacher's. It jumps"
    " where another one takes its place.",
  ),
  Kind(
    "Loss of features",
    "loss (no unit)",
    ("loss_image", "loss_patches"),
    "Distance to the features of the teacher that is distilled: 0 where equal, 1 and"
    " more where unrelated.",
  ),
  Kind(
    "KoLeo loss", "loss (nats)", ("loss_koleo",), "Falls while features spread out."
  ),
  Kind(
    "Total loss",
    "loss (nats)",
    ("loss",),
    "Weighted sum of the parts; of a fine-tuning, the cross-entropy.",
  ),
  Kind(
    "Gradient norms before clipping",
    "L2 norm (no unit)",
    ("grad_norm*",),
    "Single spikes are common; a lasting rise is not.",
    "log",
  ),
  Kind(
    "Throughput",
    "images per second",
    ("images_per_second", "step_images_per_second", "input_images_per_second"),
    "Of the run; of the step if it never waited; of the input by itself.",
  ),
  Kind("Waiting for data", "share of time (%)", ("data_wait_share",)),
  Kind("Learning rate", "learning rate (no unit)", ("learning_rate",)),
  Kind("Weight decay", "weight decay (no unit)", ("weight_decay",)),
  Kind("Teacher temperature", "temperature (no unit)", ("teacher_temp",)),
  Kind("Teacher momentum", "EMA momentum (no unit)", ("teacher_momentum",)),
  Kind("Loss weights", "weight (no unit)", ("local_weight", "gram_weight")),
  Kind("k-NN top-5 of the teacher", "accuracy (%)", ("knn_top5*",)),
  Kind("Linear probe of the teacher", "accuracy (%)", ("linear",)),
)
EVALUATED = ("knn_", "linear")  # how numbers of an evaluation begin
MAX_OTHER = 30  # charts of numbers of no kind
MAX_EVENTS = 400  # marks of one kind on the axis


def describe(run: run_record.Run) -> dict[str, Any]:
  """What a page's script knows of a run, as JSON: name, axes and marks."""
  known = hours.hours_at_work(run)
  axis = None
  if known:
    curve = thinning.thin(*known)
    axis = {"steps": _rounded(curve.steps), "hours": _rounded(curve.mean)}
  return {
    "name": run.label,
    "batch_size": run.batch_size,
    "hours": axis,
    "step": run.step,
    "checkpoints": list(run.checkpoints)[-MAX_EVENTS:],
    "restarts": hours.restarts(run)[-MAX_EVENTS:],
    "alarms": run.steps_of("alarm")[-MAX_EVENTS:],
    "errors": run.steps_of("failed")[-MAX_EVENTS:],
  }


def charts(runs: Sequence[run_record.Run]) -> tuple[list[dict[str, Any]], int]:
  """Charts as JSON: of one run with numbers together, of several each number alone.

  Returns:
    The charts, and how many numbers are left out as there are too many.
  """
  names = list(dict.fromkeys(name for run in runs for name in _all_series(run)))
  found, used = [], set()
  for kind in KINDS:
    members = [x for x in names if _matches(x, kind.names) and x not in used]
    used |= set(members)
    for group in [members] if len(runs) == 1 else [[name] for name in members]:
      alone = len(runs) == 1 or len(members) == 1
      title = kind.title if alone else f"{kind.title}: {group[0]}"
      found += _chart(runs, kind._replace(title=title), group)
  others = [name for name in names if name not in used]
  for name in others[:MAX_OTHER]:
    found += _chart(runs, Kind(name, f"{name} (unit not known)", ()), [name])
  return found, max(len(others) - MAX_OTHER, 0)


def _matches(name, patterns) -> bool:
  return any(
    name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1]))
    for pattern in patterns
  )


def _all_series(run) -> dict[str, run_record.Series]:
  """Its series, and the sum that the alarm judges."""
  parts = [run.series.get(name) for name in ("loss_dino", "loss_ibot")]
  if None in parts or len(parts[0].steps) != len(parts[1].steps):
    return run.series
  dino, ibot = parts
  return {SUM: run_record.Series(dino.steps, dino.values + ibot.values, dino.times)} | (
    run.series
  )


def _chart(runs, kind, names) -> Iterator[dict[str, Any]]:
  lines = []
  for i, run in enumerate(runs):
    series = _all_series(run)
    for name in names:
      if name in series:
        shown = name if len(runs) == 1 else run.label
        factor = 100 if kind.label.endswith("(%)") else 1
        lines.append({"name": shown, "run": i, **_line(series[name], factor)})
  if lines:
    yield {
      "title": kind.title,
      "hint": " ".join(filter(None, (kind.hint, _evaluated_on(runs, names)))),
      "label": kind.label,
      "scale": kind.scale,
      "lines": lines,
      "levels": _levels(runs, names),
    }


def _evaluated_on(runs, names) -> str:
  """The images of an evaluation, where the runs have the same number."""
  sizes = {run.evaluation_images for run in runs}
  if not names[0].startswith(EVALUATED) or len(sizes) > 1 or None in sizes:
    return ""
  ((train, test),) = sizes
  return f"{test:,} test images, {train:,} train images."


def _line(series, factor) -> dict[str, Any]:
  curve = thinning.thin(series.steps, series.values * factor)
  line = {"steps": _rounded(curve.steps), "mean": _rounded(curve.mean)}
  if curve.per_point > 1:
    line |= {"low": _rounded(curve.low), "high": _rounded(curve.high)}
  return line | {"per_point": curve.per_point}


def _rounded(values: np.ndarray) -> list[float]:
  """Seven digits, more than a screen shows; whole numbers without a point."""
  return [int(x) if x.is_integer() else x for x in map(_seven, values.tolist())]


def _seven(value: float) -> float:
  return float(f"{value:.7g}")


def _levels(runs, names) -> list[dict[str, Any]]:
  """Lines across a chart, {"name", "value"}, the highest first.

  They have the runs' names where these differ.
  """
  found: dict[str, dict[float, list[str]]] = {}
  for run in runs:
    for name, value in _levels_of_one(run, names):
      found.setdefault(name, {}).setdefault(value, []).append(run.label)
  levels = []
  for name, values in found.items():
    for value, labels in values.items():
      few = ", ".join(labels) if len(labels) <= 2 else f"{len(labels)} runs"
      shown = name if len(values) == 1 else f"{name} ({few})"
      levels.append({"name": shown, "value": value})
  return sorted(levels, key=lambda level: -level["value"])


def _levels_of_one(run, names) -> Iterator[tuple[str, float]]:
  if SUM in names and run.nothing_learnt:
    yield "nothing learnt", run.nothing_learnt
    yield "collapse", alarm.COLLAPSED * run.nothing_learnt
  if "loss" in names and (level := tuned.uniform_loss(run)):
    yield "uniform predictions", level
  count = run.count("heads.dino.prototypes")
  if "teacher_entropy" in names and count:
    yield "all prototypes alike", math.log(count)
  if "data_wait_share" in names:
    yield "starved of data", 100 * alarm.MUCH_WAITING
  yield from _baselines(run, names)


def _baselines(run, names) -> Iterator[tuple[str, float]]:
  """Raw pixels and the untrained network, by the first number that both sides have."""
  for name in names:
    found = run.baselines(name)
    for title, value in found.items():
      yield f"{title}, {name.removeprefix('knn_')}", 100 * value
    if found:
      return
