r"""Evaluates a frozen backbone: k-NN, linear probe, logistic regression, retrieval.

  python -m dinojax.evaluate --checkpoint=runs/vitg14 --tasks=knn,linear \
    --train=tfds:imagenet2012:train --test=tfds:imagenet2012:validation

Of a run's checkpoint only the teacher's backbone is read. Features are computed once
for all tasks. Each task prints its table on stdout when it is done; its numbers are
added to --results, a JSON file, and to the run's metrics. --train, --test and --val are
sources as in training, such as folder:PATH or embedded:digits:test.
"""

import contextlib
import dataclasses
import math

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

import dinojax
from dinojax import backbone, durable, errors, sharding
from dinojax.commands import backbone_flags, cli, image_flags
from dinojax.data import sources
from dinojax.evals import cache, features, labelled, linear, results, tasks
from dinojax.reporting import console
from dinojax.runtime import compiled, processes

for module in (backbone_flags, processes):
  flags.adopt_module_key_flags(module)
NAMES = ("knn", "linear", "logreg", "retrieval")
# Of a task's fields, those that its numbers do not name: added to the run's metrics.
SETTINGS = ("temperature", "tries", "steps", "batch_size", "seed")
TASKS = flags.DEFINE_list(
  "tasks", ["knn"], f"Some of {', '.join(NAMES)}, separated by commas."
)
TRAIN = flags.DEFINE_string(
  "train",
  None,
  "Labelled source: neighbours, training images of classifiers, gallery. One of"
  f" {sources.USAGE}.",
)
TEST = flags.DEFINE_string(
  "test",
  None,
  "Labelled source to evaluate on. If it is --train, retrieval ranks each image among"
  " all the others.",
)
VAL = flags.DEFINE_string(
  "val",
  None,
  "Labelled source on which linear chooses its best head; default --test, as published"
  " numbers do.",
)
KS = flags.DEFINE_list("ks", ["10", "20", "100", "200"], "knn: numbers of neighbours.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.07, "knn: of the softmax of votes.")
SHOTS = flags.DEFINE_list(
  "shots", [], "knn: also from this many images of each class, drawn --tries times."
)
TRIES = flags.DEFINE_integer("tries", 5, "knn: draws for each number of --shots.")
LINEAR_STEPS = flags.DEFINE_integer("linear_steps", 12_500, "linear: steps of SGD.")
LINEAR_BATCH = flags.DEFINE_integer("linear_batch", 1_024, "linear: images per step.")
RECALL = flags.DEFINE_list("recall", ["1", "5", "10"], "retrieval: the k of recall@k.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of draws, first weights and order.")
RESULTS = flags.DEFINE_string("results", None, "Also writes everything to this JSON.")
MAX_PIXELS = image_flags.define_max_pixels()
flags.declare_key_flag(MAX_PIXELS.name)
CACHE = flags.DEFINE_string(
  "cache", None, "Folder that keeps features for the next evaluation of the same."
)


def chosen_tasks() -> dict[str, tasks.Task]:
  """The tasks by name; UserError for the first flag that cannot work."""
  names = list(dict.fromkeys(TASKS.value))
  for name in names or [""]:
    if name not in NAMES:
      raise errors.UserError(f"--tasks={name} must be some of {', '.join(NAMES)}")
  for flag, least in ((TRIES, 1), (LINEAR_STEPS, 1), (LINEAR_BATCH, 1), (SEED, 0)):
    if flag.value < least:
      raise errors.UserError(f"--{flag.name}={flag.value} must be at least {least}")
  if not 0 < TEMPERATURE.value < math.inf:
    raise errors.UserError(f"--temperature={TEMPERATURE.value} must be above 0")
  for flag in (TRAIN, TEST):
    if not flag.value:
      raise errors.UserError(f"--{flag.name}=SOURCE is missing, such as folder:PHOTOS")
  known = {
    "knn": tasks.Knn(
      ks=cli.integers(KS),
      temperature=TEMPERATURE.value,
      shots=cli.integers(SHOTS) if SHOTS.value else (),
      tries=TRIES.value,
      seed=SEED.value,
    ),
    "linear": tasks.Linear(LINEAR_STEPS.value, LINEAR_BATCH.value, SEED.value),
    "logreg": tasks.LogReg(SEED.value),
    "retrieval": tasks.Retrieval(cli.integers(RECALL), TRAIN.value == TEST.value),
  }
  return {name: known[name] for name in names}


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
        max_pixels=MAX_PIXELS.value,
        description=f"features of --{name}",
        progress=watch.step_done,
        **sizes,
      )
    features.check(bank, source)
    return bank

  return cache.cached(
    compute,
    CACHE.value,
    what=f"features of --{name}, {len(source):,} images",
    made_of={
      "weights": loaded.fingerprint,
      "source": source.fingerprint,
      "columns": present,
      "dtype": loaded.module.dtype,
      "batch_size": batch_size,
      "max_pixels": MAX_PIXELS.value,
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


def describe(
  loaded: backbone.Backbone, opened: dict[str, sources.Source], name: str | None = None
) -> dict:
  """What is evaluated, by flag; name: for this task alone, whose features it says."""
  about = {
    **{name: flags.FLAGS[name].value for name in opened},
    **backbone_flags.image_sizes(loaded),
    "dtype": loaded.module.dtype,
  }
  if name != "linear":  # it has features of its own
    about["feature"] = backbone_flags.feature(loaded)
    about["layers"] = backbone_flags.LAYERS.value
  return about


def main(_) -> None:
  """Computes the features of all sources, then does one task after the other."""
  processes.join()
  chosen = chosen_tasks()
  durable.check_file(RESULTS.value, flag="--results", example="results.json")
  specs = {flag.name: flag.value for flag in (TRAIN, TEST, VAL) if flag.value}
  opened = labelled.open_sources(specs)
  check_labels(chosen, opened)
  compiled.keep_programs("auto")
  mesh = sharding.make_mesh(data=sharding.slice_count(), fsdp=-1)
  processes.meet("connect")
  sharding.connect(mesh)
  if "linear" in chosen:
    linear.check_batch(LINEAR_BATCH.value, mesh)
  with jax.set_mesh(mesh):
    loaded = backbone_flags.load(mesh)
    origin = {**backbone_flags.origin(loaded), "weights": loaded.fingerprint}
    about = {**origin, **describe(loaded, opened)}
    console.say(", ".join(f"{k} {x}" for k, x in about.items() if x is not None))
    about["tasks"] = {name: dataclasses.asdict(task) for name, task in chosen.items()}
    wanted = {name: columns(name, loaded) for name in chosen}
    present = tuple(sorted({column for some in wanted.values() for column in some}))
    # Small sets first: what cannot work with them is known soon.
    banks = {
      name: extract(name, opened[name], loaded, present, mesh)
      for name in sorted(opened, key=lambda name: len(opened[name]))
    }
    highest = max(int(bank.labels.max()) for bank in banks.values())
    class_names = labelled.class_names(opened, highest)
    width, failures = loaded.module.width, []
    found = results.Results(about, path=RESULTS.value, run=loaded.run)
    for name, task in chosen.items():
      some = {k: features.select(x, present, wanted[name]) for k, x in banks.items()}
      images = ", ".join(f"{len(x):,} images of --{k}" for k, x in opened.items())
      console.say(f"{name}: {images}, {len(wanted[name]) * width:,} features each")
      try:
        numbers = task.evaluate(some, class_names=class_names, width=width, mesh=mesh)
      except errors.UserError as error:  # the other tasks do not depend on it
        failures.append(error)
        continue
      settings = {
        f"{name}_{k}": x for k, x in about["tasks"][name].items() if k in SETTINGS
      }
      found.add(numbers, {**describe(loaded, opened, name), **settings})
    found.close()
  if len(failures) == 1:
    raise failures[0]
  if failures:
    raise errors.UserError("; ".join(map(str, failures)))


if __name__ == "__main__":
  cli.run(main, on_interrupt="ended; finished tasks are recorded", config=False)
