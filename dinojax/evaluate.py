r"""Evaluates a frozen backbone: k-NN, linear probe, retrieval, segmentation and more.

  python -m dinojax.evaluate --checkpoint=runs/vitg14 --tasks=knn,linear \
    --train=tfds:imagenet2012:train --test=tfds:imagenet2012:validation

Of a run's checkpoint only the teacher's backbone is read. Features are computed once
for all tasks. Each task prints its table on stdout when it is done; its numbers are
added to --results, a JSON file, and to the run's metrics. --train, --test and --val are
sources as in training, such as folder:PATH or embedded:digits:test; segmentation and
depth need sources with maps, such as 'folder:PATH?masks=PATH'. --suite=imagenet1k or
small chooses tasks and sources itself, and prints published figures beside ours.
"""

import contextlib
import dataclasses

import jax
import numpy as np
from absl import flags

from dinojax import backbone, durable, errors, evaluation, sharding
from dinojax.commands import backbone_flags, cli, evaluation_flags
from dinojax.data import sources
from dinojax.evals import dense_sources, dense_tasks, labelled, linear, results, tasks
from dinojax.reporting import console, published
from dinojax.runtime import compiled, processes

for module in (backbone_flags, evaluation_flags, processes):
  flags.adopt_module_key_flags(module)
TASKS = {
  "knn": tasks.Knn,
  "linear": tasks.Linear,
  "logreg": tasks.LogReg,
  "retrieval": tasks.Retrieval,
  "attentive": dense_tasks.Attentive,
  "knn_segmentation": dense_tasks.KnnSegmentation,
  "logreg_segmentation": dense_tasks.LogRegSegmentation,
  "linear_segmentation": dense_tasks.LinearSegmentation,
  "depth": dense_tasks.Depth,
}
# Of a task's fields, those that its numbers do not name: added to the run's metrics.
SETTINGS = (
  *("temperature", "tries", "steps", "batch_size", "seed", "k", "memory"),
  *("min_area", "flip_prob", "low", "high", "crop"),
)


def chosen_tasks() -> dict[str, tasks.Task | dense_tasks.Task]:
  """The tasks by name; UserError for the first flag that cannot work."""
  names, settings = evaluation_flags.checked_tasks(), evaluation_flags.settings()
  return {name: TASKS[name](**settings[name]) for name in names}


def check_labels(
  chosen: dict[str, tasks.Task], opened: dict[str, sources.Source]
) -> None:
  """Refuses, before features are computed, labels that a task cannot work with.

  A source that does not list its labels is read for them if a task needs its classes.
  """
  labels = {}
  for name, source in opened.items():
    if source.labels is not None:
      labels[name] = source.labels
    elif name == "train" and any(task.needs_classes for task in chosen.values()):
      with contextlib.closing(backbone_flags.open_watchdog()) as watch:
        labels[name] = labelled.read(
          source,
          name=f"--{name}",
          workers=backbone_flags.WORKERS.value,
          progress=watch.step_done,
        )
    else:  # only the number of images is checked, as if all were of one class
      labels[name] = np.zeros(len(source), int)
  highest = max(int(x.max(initial=-1)) for x in labels.values())
  class_names = labelled.class_names(opened, highest)
  for task in chosen.values():
    task.check(labels, class_names)


def describe(loaded: backbone.Backbone, specs: dict[str, str], name: str) -> dict:
  """What a task evaluates, by flag; specs: its sources."""
  about = {
    **specs,
    **backbone_flags.image_sizes(loaded),
    "dtype": loaded.module.dtype,
  }
  if name in (*evaluation_flags.MAPS, *evaluation_flags.DEPTH):
    del about["resize"]  # images are stretched to the crop's size, or windows cut out
    if evaluation_flags.WINDOW.value is not None:
      about["window"] = evaluation_flags.WINDOW.value
  elif name not in ("linear", *evaluation_flags.TOKENS):  # features of their own
    about["feature"] = backbone_flags.feature(loaded)
    about["layers"] = backbone_flags.LAYERS.value
  return about


def main(_) -> None:
  """Opens all sources, then does one task after the other."""
  processes.join()
  evaluation_flags.apply_suite()
  chosen = chosen_tasks()
  path = evaluation_flags.RESULTS.value
  durable.check_file(path, flag="--results", example="results.json")
  sets, suite = evaluation_flags.sources_given(), evaluation_flags.SUITE.value
  specs = next(iter(sets.values()))  # the only ones without a suite
  plain, tokens, maps, depth = (
    {k: task for k, task in chosen.items() if k in names}
    for names in evaluation_flags.KINDS
  )
  field = f"--suite={suite}: " if suite else "--"
  opened = labelled.open_sets(sets, field=field) if plain or tokens else {}
  mapped = dense_sources.open_sources(specs, task=next(iter(maps))) if maps else {}
  deep = dense_sources.open_depth_sources(specs) if depth else {}
  for some in opened.values() if plain else ():
    check_labels(plain, some)
  compiled.keep_programs("auto")
  mesh = sharding.make_mesh(data=sharding.slice_count(), fsdp=-1)
  processes.meet("connect")
  sharding.connect(mesh)
  for name, flag in evaluation_flags.BATCHES.items():
    if name in chosen:
      linear.check_batch(flag.value, mesh, flag=flag.name)
  with jax.set_mesh(mesh):
    loaded = backbone_flags.load(mesh)
    origin = {**backbone_flags.origin(loaded), "weights": loaded.fingerprint}
    shared = {"suite": suite} if suite else specs
    about = {**origin, **describe(loaded, shared, next(iter(chosen)))}
    console.say(", ".join(f"{k} {x}" for k, x in about.items() if x is not None))
    about["tasks"] = {name: dataclasses.asdict(task) for name, task in chosen.items()}
    if suite:
      about["sets"] = sets
      about["published"] = {data: published.record(data) for data in sets}
    found = results.Results(about, path=path, run=loaded.run)
    failures = []
    parts = [
      (data, evaluation.evaluate_features(plain, some, loaded, mesh))
      for data, some in (opened.items() if plain else ())
    ]
    if tokens:
      parts.append(("", evaluation.evaluate_tokens(tokens, opened[""], loaded, mesh)))
    if maps:
      parts.append(("", evaluation.evaluate_maps(maps, mapped, loaded, mesh)))
    if depth:
      parts.append(("", evaluation.evaluate_depth(depth, deep, loaded, mesh)))
    for data, part in parts:
      for name, evaluate in part:
        try:
          numbers = evaluate()
        except errors.UserError as error:  # the other tasks do not depend on it
          failures.append(f"{data}: {error}" if data else str(error))
          continue
        settings = {
          f"{name}_{k}": x for k, x in about["tasks"][name].items() if k in SETTINGS
        }
        settings |= {"suite": suite, "data": data} if suite else {}
        settings = {**describe(loaded, sets[data], name), **settings}
        found.add(numbers, settings, data=data)
    if suite:
      found.compare()
    found.close()
  if failures:
    raise errors.UserError("; ".join(failures))


if __name__ == "__main__":
  cli.run(main, on_interrupt="ended; finished tasks are recorded", config=False)
