"""Published figures of public models, and ours beside them.

Each figure is as its source prints it. What no source known to us says is left blank.
"""

import dataclasses
import re
from collections.abc import Iterator

TASKS = {"knn": "k-NN", "linear": "linear", "logreg": "logistic regression"}
OURS = re.compile(r"(knn)_top1_k\d+|(linear|logreg)_top1")
DINO = "https://github.com/facebookresearch/dino README"
DINOV2 = "https://github.com/facebookresearch/dinov2 README"
DINOV3 = "https://github.com/facebookresearch/dinov3 README"
LIGHTLY = "https://docs.lightly.ai/getting_started/benchmarks.html"


@dataclasses.dataclass(frozen=True)
class Figures:
  """Top-1 of a model in percent, by task."""

  model: str
  source: str
  top1: dict[str, float]


def _knn_linear(model, source, knn, linear):
  return Figures(model, source, {"knn": knn, "linear": linear})


# By data set of tfds.
FIGURES = {
  "imagenet2012": (
    _knn_linear("DINO ViT-S/16", DINO, 74.5, 77.0),
    _knn_linear("DINO ViT-S/8", DINO, 78.3, 79.7),
    _knn_linear("DINO ViT-B/16", DINO, 76.1, 78.2),
    _knn_linear("DINO ViT-B/8", DINO, 77.4, 80.1),
    _knn_linear("DINO ViT-S/16, 100 epochs", LIGHTLY, 67.5, 73.3),
    _knn_linear("iBOT ViT-S/16, 100 epochs", LIGHTLY, 65.4, 72.2),
    _knn_linear("DINOv2 ViT-L/16, ImageNet-1k alone", DINOV2, 81.6, 82.9),
    _knn_linear("DINOv2 ViT-S/14", DINOV2, 79.0, 81.1),
    _knn_linear("DINOv2 ViT-B/14", DINOV2, 82.1, 84.5),
    _knn_linear("DINOv2 ViT-L/14", DINOV2, 83.5, 86.3),
    _knn_linear("DINOv2 ViT-g/14", DINOV2, 83.5, 86.5),
    _knn_linear("DINOv2 ViT-S/14, 4 registers", DINOV2, 79.1, 80.9),
    _knn_linear("DINOv2 ViT-B/14, 4 registers", DINOV2, 82.0, 84.6),
    _knn_linear("DINOv2 ViT-L/14, 4 registers", DINOV2, 83.8, 86.7),
    _knn_linear("DINOv2 ViT-g/14, 4 registers", DINOV2, 83.7, 87.1),
    _knn_linear("DINOv3 ViT-L/16, ImageNet-1k alone", DINOV3, 82.0, 83.5),
  ),
  "cifar10": (
    Figures("DINO ResNet-18, 200 epochs of CIFAR-10", LIGHTLY, {"knn": 84.0}),
  ),
}


def columns(found: dict) -> list[str]:
  """The tasks of TASKS that the numbers of a data set come from."""
  names = {next(filter(None, match.groups())) for match in _ours(found)}
  return [task for task in TASKS if task in names]


def rows(data: str, found: dict) -> Iterator[tuple[str, ...]]:
  """Ours, its interval, and each published model: (title, a cell a task, source).

  Of k-NN, ours is the best of its numbers of neighbours, as published ones are.

  Args:
    data: name of the data set.
    found: our numbers by name, such as knn_top1_k10 with knn_top1_k10_low and _high.
  """
  tasks = columns(found)
  best = {}
  for match in _ours(found):
    task = next(filter(None, match.groups()))
    if task not in best or found[match[0]] > found[best[task]]:
      best[task] = match[0]
  yield ("ours", *(f"{found[best[task]]:.1%}" for task in tasks), "")
  yield ("95% interval", *(interval(best[task], found) for task in tasks), "")
  for figures in FIGURES.get(data, ()):
    cells = [f"{figures.top1[x]:.1f}%" if x in figures.top1 else "" for x in tasks]
    yield figures.model, *cells, figures.source


def interval(name: str, found: dict) -> str:
  """The interval of a number, such as 95.6-98.3%; empty if there is none."""
  if f"{name}_low" not in found:
    return ""
  return f"{100 * found[f'{name}_low']:.1f}-{found[f'{name}_high']:.1%}"


def render(data: str, found: dict) -> str:
  """The table of `rows`; empty without any task of TASKS."""
  if not columns(found):
    return ""
  heads = [TASKS[task] for task in columns(found)]
  body = [(f"  {title}", *cells) for title, *cells in rows(data, found)]
  first = max(len(row[0]) for row in [(data,), *body])
  widths = [max(len(head), len("99.9-100.0%")) + 3 for head in heads]

  def line(title, *cells):
    *numbers, source = cells
    texts = "".join(f"{x:>{width}}" for x, width in zip(numbers, widths, strict=True))
    return f"{title:{first}}{texts}   {source}".rstrip()

  return "\n".join([line(data, *heads, "source"), *(line(*row) for row in body)])


def record(data: str) -> list[dict]:
  """The published figures of a data set, for JSON."""
  return [dataclasses.asdict(figures) for figures in FIGURES.get(data, ())]


def _ours(found) -> list[re.Match]:
  return list(filter(None, map(OURS.fullmatch, found)))
