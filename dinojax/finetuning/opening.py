"""Sources of a fine-tuning, opened for its task, and the names of its classes."""

from collections.abc import Callable

import numpy as np

from dinojax import errors
from dinojax.data import label_sets, sources
from dinojax.evals import dense_sources, labelled


def open_sources(
  task: str, specs: dict[str, str], *, workers: int, progress: Callable[[], None]
) -> tuple[dict[str, sources.Source], tuple[str, ...]]:
  """Sources by the names of their flags, "train" first, and the classes by label.

  Args:
    task: one of `tasks.TASKS`.
    specs: sources by the names of their flags.
    workers: processes that read labels.
    progress: called while they do.

  Raises:
    UserError: a source does not suit the task, or --train has too few classes.
  """
  opening = {
    "classes": _of_classes,
    "labels": _of_labels,
    "segmentation": _of_segmentation,
  }
  return opening[task](specs, workers, progress)


def _of_classes(specs, workers, progress):
  opened = labelled.open_sources(specs)
  labels = labelled.read(
    opened["train"], name="--train", workers=workers, progress=progress
  )
  highest = int(np.max(labels, initial=-1))
  names = labelled.class_names({"train": opened["train"]}, highest)
  count = int((labelled.count(labels, names) > 0).sum())
  if count < 2:
    raise errors.UserError(
      f"{opened['train'].where} has images of {count} class; give at least 2 classes"
    )
  return opened, names


def _of_segmentation(specs, workers, progress):
  opened = dense_sources.open_sources(specs, task="--task=segmentation")
  names = dense_sources.class_names(opened, workers=workers, progress=progress)
  if len(names) < 2:
    raise errors.UserError(
      f"{opened['train'].where} has label maps of one class; give at least 2 classes"
    )
  return opened, names


def _of_labels(specs, workers, progress):
  opened = {
    name: sources.open_source(spec, field=f"--{name}") for name, spec in specs.items()
  }
  names = opened["train"].class_names
  opened = {
    name: label_sets.LabelSets(source, names) for name, source in opened.items()
  }
  if not names:
    raise errors.UserError(f"{opened['train'].where} has no label at all; give some")
  return opened, names
