"""Table of evaluation results for people."""

import re
from collections.abc import Iterator

from dinojax.reporting import published

COLUMN = 14  # characters
# Results that stand in the row or the cell of another one.
WITHIN_OTHERS = re.compile(
  r"knn_.*_std|(knn|linear|logreg)_.*_(low|high)|(linear(_segmentation)?|attentive|depth)_(head|chosen_on|grid)|logreg_c"
  r"|(knn|logreg)_segmentation_patches|logreg_segmentation_c"
)
CHOICE = "head", "chosen_on"  # of a task with a grid of heads


def rows(results: dict) -> Iterator[tuple[str, str, str]]:
  """Yields (row, column, text) of each result; an unknown one is printed as it is.

  Names are those of the evaluations, such as knn_top1_k10, knn_top5_k5_shots5 with its
  _std, linear_top1, retrieval_recall_at_5.
  """
  for name, value in results.items():
    if match := re.fullmatch(r"knn_top(\d)_k(\d+)(?:_shots(\d+))?", name):
      top, k, shots = match.groups()
      row = f"k-NN, k={k}" + (f", {shots} images per class" if shots else "")
      deviation = results.get(f"{name}_std")
      more = "" if deviation is None else f" ±{100 * deviation:.1f}"
      yield row, f"top-{top}", f"{value:.1%}{more}"
      yield from _interval(row, name, results)
    elif match := re.fullmatch(r"(linear|attentive)_top(\d)", name):
      task, top = match.groups()
      head, chosen_on = (results[f"{task}_{x}"] for x in CHOICE)
      row = f"{task}, {head}, chosen on {chosen_on}"
      yield row, f"top-{top}", f"{value:.1%}"
      yield from _interval(row, name, results)
    elif match := re.fullmatch(r"logreg_top(\d)", name):
      row = f"logistic regression, C={results['logreg_c']:.2g}"
      yield row, f"top-{match[1]}", f"{value:.1%}"
      yield from _interval(row, name, results)
    elif name == "retrieval_map":
      yield "retrieval", "mAP", f"{value:.1%}"
    elif match := re.fullmatch(r"retrieval_recall_at_(\d+)", name):
      yield "retrieval", f"recall@{match[1]}", f"{value:.1%}"
    elif name == "retrieval_left_out":
      if value:
        yield "retrieval, queries without a match", "left out", f"{value:,}"
    elif match := re.fullmatch(r"(\w+)_segmentation_(miou|accuracy)", name):
      row = _segmentation_row(match[1], results)
      yield row, {"miou": "mIoU", "accuracy": "pixels"}[match[2]], f"{value:.1%}"
    elif re.fullmatch(r"\w+_segmentation_iou", name):
      for title, iou in value.items():
        yield f"  {title}", "IoU", "none" if iou is None else f"{iou:.1%}"
    elif match := re.fullmatch(r"depth_(rmse|absrel|delta1)", name):
      head, chosen_on = (results[f"depth_{x}"] for x in CHOICE)
      column = {"rmse": "RMSE", "absrel": "AbsRel", "delta1": "delta1"}[match[1]]
      text = {"rmse": f"{value:.3f} m", "absrel": f"{value:.3f}"}.get(match[1])
      text = text or f"{value:.1%}"
      yield f"depth, {head}, chosen on {chosen_on}", column, text
    elif not WITHIN_OTHERS.fullmatch(name):
      yield name, "value", f"{value:.4g}" if isinstance(value, float) else str(value)


def _interval(row: str, name: str, results: dict) -> Iterator[tuple[str, str, str]]:
  if text := published.interval(name, results):
    yield row, "95% interval", text


def _segmentation_row(task: str, results: dict) -> str:
  about = {
    k.removeprefix(f"{task}_segmentation_"): x
    for k, x in results.items()
    if k.startswith(f"{task}_segmentation_")
  }
  if task == "knn":
    return f"k-NN segmentation, {about['patches']:,} patches"
  if task == "logreg":
    return f"logistic regression of {about['patches']:,} patches, C={about['c']:.2g}"
  head, chosen_on = (about[x] for x in CHOICE)
  return f"{task} segmentation, {head}, chosen on {chosen_on}"


def render(results: dict) -> str:
  """The table: rows in the order of the results, each group under its own columns."""
  cells: dict[str, dict] = {}
  for row, column, text in rows(results):
    cells.setdefault(row, {})[column] = text
  groups: dict[tuple, dict[str, dict]] = {}
  for row, texts in cells.items():
    groups.setdefault(tuple(texts), {})[row] = texts
  first = max(map(len, cells), default=0)
  lines = []
  for columns, members in groups.items():
    lines.append(" " * first + "".join(f"{column:>{COLUMN}}" for column in columns))
    lines += [
      f"{row:{first}}" + "".join(f"{x:>{COLUMN}}" for x in texts.values())
      for row, texts in members.items()
    ]
  return "\n".join(lines)
