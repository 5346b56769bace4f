r"""Evaluates a frozen backbone: k-NN, linear probe, retrieval, segmentation and more.

  python -m dinojax.evaluate --checkpoint=runs/vitg14 --tasks=knn,linear \
    --train=tfds:imagenet2012:train --test=tfds:imagenet2012:validation

Of a run's checkpoint only the teacher's backbone is read. Features are computed once
for all tasks. Each task prints its table on stdout when it is done; its numbers are
added to --results, a JSON file, and to the run's metrics. --train, --test and --val are
sources as in training, such as folder:PATH or embedded:digits:test. knn_segmentation
labels the pixels of --test by the nearest patches of --train, without training, and
linear_segmentation by a linear layer on patches; they need sources with label maps,
such as 'folder:PATH?masks=PATH'.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

import dinojax
from dinojax import backbone, durable, errors, sharding
from dinojax.commands import backbone_flags, cli, evaluation_flags
from dinojax.data import sources
from dinojax.evals import (
  cache,
  dense_sources,
  features,
  labelled,
  linear,
  patches,
  results,
  tasks,
)
from dinojax.reporting import console
from dinojax.runtime import compiled, processes

for module in (backbone_flags, evaluation_flags, processes):
  flags.adopt_module_key_flags(module)
TASKS = {
  "knn": tasks.Knn,
  "linear": tasks.Linear,
  "logreg": tasks.LogReg,
  "retrieval": tasks.Retrieval,
  "knn_segmentation": tasks.KnnSegmentation,
  "linear_segmentation": tasks.LinearSegmentation,
}
# Of a task's fields, those that its numbers do not name: added to the run's metrics.
SETTINGS = ("temperature", "tries", "steps", "batch_size", "seed", "k", "memory")


def chosen_tasks() -> dict[str, tasks.Task | tasks.DenseTask]:
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


def columns(name: str, loaded: backbone.Backbone) -> tuple:
  """The features that a task reads, as of `backbone.columns`."""
  if name == "linear":
    return tasks.Linear.columns(loaded.module.depth)
  return backbone.columns(backbone_flags.feature(loaded), backbone_flags.LAYERS.value)


def extract(
  name: str,
  source: sources.Source,
  loaded: backbone.Backbone,
  present: tuple,
  mesh: Mesh,
) -> features.Bank:
  """The columns `present` of all images of a source."""
  sizes = backbone_flags.image_sizes(loaded)
  batch_size = backbone_flags.batch_size(mesh.size)

  @jax.jit
  def apply(params, images):
    return backbone.image_columns(loaded.module, params, images, present)

  def compute():
    watch = backbone_flags.open_watchdog()
    with contextlib.closing(watch):
      bank = features.extract(
        source,
        apply,
        loaded.params,
        mesh=mesh,
        batch_size=batch_size,
        workers=backbone_flags.WORKERS.value,
        max_pixels=evaluation_flags.MAX_PIXELS.value,
        layout=loaded.layout,
        description=f"features of --{name}",
        progress=watch.step_done,
        **sizes,
      )
    features.check(bank, source)
    return bank

  return cache.cached(
    compute,
    evaluation_flags.CACHE.value,
    what=f"features of --{name}, {len(source):,} images",
    made_of={
      "weights": loaded.fingerprint,
      "source": source.fingerprint,
      "columns": present,
      "dtype": loaded.module.dtype,
      "batch_size": batch_size,
      "max_pixels": evaluation_flags.MAX_PIXELS.value,
      "dinojax": dinojax.__version__,
      **sizes,
    },
    shape=(
      math.ceil(len(source) / batch_size),
      batch_size,
      len(present) * loaded.module.width,
    ),
    mesh=mesh,
  )


def describe(loaded: backbone.Backbone, opened: Iterable[str], name: str) -> dict:
  """What a task evaluates, by flag; opened: the names of its sources."""
  about = {
    **{source: flags.FLAGS[source].value for source in opened},
    **backbone_flags.image_sizes(loaded),
    "dtype": loaded.module.dtype,
  }
  if name in evaluation_flags.DENSE:
    del about["resize"]  # whole images are stretched to the crop's size
  elif name != "linear":  # it has features of its own
    about["feature"] = backbone_flags.feature(loaded)
    about["layers"] = backbone_flags.LAYERS.value
  return about


def evaluate_features(
  chosen: dict[str, tasks.Task],
  opened: dict[str, sources.Source],
  loaded: backbone.Backbone,
  mesh: Mesh,
) -> Iterator[tuple[str, Callable[[], dict]]]:
  """Computes features of all sources; yields tasks by name, to be called."""
  wanted = {name: columns(name, loaded) for name in chosen}
  present = tuple(sorted({column for some in wanted.values() for column in some}))
  # Small sets first: what cannot work with them is known soon.
  banks = {
    name: extract(name, opened[name], loaded, present, mesh)
    for name in sorted(opened, key=lambda name: len(opened[name]))
  }
  highest = max(int(bank.labels.max()) for bank in banks.values())
  class_names, width = labelled.class_names(opened, highest), loaded.module.width
  about = dict(class_names=class_names, width=width, mesh=mesh)
  for name, task in chosen.items():
    some = {k: features.select(x, present, wanted[name]) for k, x in banks.items()}
    numbers = f"{len(wanted[name]) * width:,} features each"
    console.say(f"{name}: {image_counts(opened)}, {numbers}")
    yield name, functools.partial(task.evaluate, some, **about)


def evaluate_patches(
  chosen: dict[str, tasks.DenseTask],
  opened: dict[str, sources.DenseSource],
  loaded: backbone.Backbone,
  mesh: Mesh,
) -> Iterator[tuple[str, Callable[[], dict]]]:
  """Remembers patches of --train; yields tasks by name, to be called."""
  side, patch = backbone_flags.image_sizes(loaded)["crop"], loaded.module.patch_size

  @jax.jit
  def apply(params, images):
    return backbone.apply(loaded.module, params, images).patches

  with contextlib.closing(backbone_flags.open_watchdog()) as watch:
    reading = dict(workers=backbone_flags.WORKERS.value, progress=watch.step_done)
    class_names = dense_sources.class_names(opened, **reading)
    grid, classes = (side // patch) ** 2, len(class_names)
    most = min(task.most_images(grid, classes) for task in chosen.values())
    reader = patches.Reader(
      apply,
      loaded.params,
      patch_size=patch,
      side=side,
      mesh=mesh,
      batch_size=backbone_flags.batch_size(mesh.size, at_most=most),
      max_pixels=evaluation_flags.MAX_PIXELS.value,
      layout=loaded.layout,
      **reading,
    )
    memory = patches.remember(
      reader,
      opened["train"],
      num_classes=classes,
      most=evaluation_flags.SEGMENTATION_MEMORY.value,
      seed=evaluation_flags.SEED.value,
      description="patches of --train",
    )
    for name, task in chosen.items():
      size = f"{patches.count(memory):,} patches of {loaded.module.width:,} features"
      console.say(f"{name}: {image_counts(opened)}, {size}, {classes} classes")
      yield (
        name,
        functools.partial(task.evaluate, reader, memory, opened, class_names),
      )


def image_counts(opened: dict[str, sources.Source]) -> str:
  """How many images there are of each source."""
  return ", ".join(f"{len(x):,} images of --{k}" for k, x in opened.items())


def main(_) -> None:
  """Opens all sources, then does one task after the other."""
  processes.join()
  chosen = chosen_tasks()
  path = evaluation_flags.RESULTS.value
  durable.check_file(path, flag="--results", example="results.json")
  specs = evaluation_flags.sources_given()
  dense = {k: task for k, task in chosen.items() if k in evaluation_flags.DENSE}
  plain = {k: task for k, task in chosen.items() if k not in dense}
  mapped = dense_sources.open_sources(specs, task=next(iter(dense))) if dense else {}
  opened = labelled.open_sources(specs) if plain else {}
  if plain:
    check_labels(plain, opened)
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
    about = {**origin, **describe(loaded, specs, next(iter(plain or dense)))}
    console.say(", ".join(f"{k} {x}" for k, x in about.items() if x is not None))
    about["tasks"] = {name: dataclasses.asdict(task) for name, task in chosen.items()}
    found = results.Results(about, path=path, run=loaded.run)
    failures = []
    for name, evaluate in itertools.chain(
      evaluate_features(plain, opened, loaded, mesh) if plain else (),
      evaluate_patches(dense, mapped, loaded, mesh) if dense else (),
    ):
      try:
        numbers = evaluate()
      except errors.UserError as error:  # the other tasks do not depend on it
        failures.append(error)
        continue
      settings = {
        f"{name}_{k}": x for k, x in about["tasks"][name].items() if k in SETTINGS
      }
      found.add(numbers, {**describe(loaded, specs, name), **settings})
    found.close()
  if len(failures) == 1:
    raise failures[0]
  if failures:
    raise errors.UserError("; ".join(map(str, failures)))


if __name__ == "__main__":
  cli.run(main, on_interrupt="ended; finished tasks are recorded", config=False)
