r"""Rates a frozen backbone: k-NN, linear probe, logistic regression, retrieval.

  python -m dinojax.evaluate --checkpoint=runs/vitg14 --tasks=knn,linear \
    --train=tfds:imagenet2012:train --test=tfds:imagenet2012:validation

Of a run's checkpoint the teacher's backbone alone is read. Features are computed once
for all tasks. Results are printed as a table, written to --results as JSON, and added
to the run's own metrics. Sources are those of training, see --train.
"""

import json
import math
import pathlib

import jax
from absl import flags
from jax.sharding import Mesh

import dinojax
from dinojax import backbone, errors, sharding
from dinojax.commands import backbone_flags, cli
from dinojax.data import classes, sources
from dinojax.evals import (
  cache,
  features,
  few_shot,
  knn,
  linear,
  logreg,
  retrieval,
  table,
)
from dinojax.reporting import console, metrics
from dinojax.runtime import processes
from dinojax.weights import runs

for module in (backbone_flags, processes):
  flags.adopt_module_key_flags(module)
TASKS = flags.DEFINE_list(
  "tasks", ["knn"], "Some of knn, linear, logreg, retrieval, with commas between."
)
TRAIN = flags.DEFINE_string(
  "train",
  None,
  "Labelled source: the neighbours, what is learnt from, the gallery. One of"
  f" {sources.USAGE}.",
)
TEST = flags.DEFINE_string(
  "test",
  None,
  "Labelled source to rate on. The same as --train: retrieval leaves each image itself"
  " out.",
)
VAL = flags.DEFINE_string(
  "val",
  None,
  "Labelled source on which linear chooses the best of its heads; default --test, as"
  " published numbers do.",
)
KS = flags.DEFINE_list("ks", ["10", "20", "100", "200"], "knn: numbers of neighbours.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.07, "knn: of the softmax of votes.")
SHOTS = flags.DEFINE_list(
  "shots", [], "knn: also from so many images of each class, drawn --tries times."
)
TRIES = flags.DEFINE_integer("tries", 5, "knn: draws for each number of --shots.")
LINEAR_STEPS = flags.DEFINE_integer("linear_steps", 12_500, "linear: steps of SGD.")
LINEAR_BATCH = flags.DEFINE_integer("linear_batch", 1_024, "linear: images of a step.")
RECALL = flags.DEFINE_list("recall", ["1", "5", "10"], "retrieval: the k of recall@k.")
SEED = flags.DEFINE_integer("seed", 0, "Of draws, first weights and order.")
RESULTS = flags.DEFINE_string("results", None, "Also writes all to this JSON file.")
CACHE = flags.DEFINE_string(
  "cache", None, "Keeps features in this folder, for the next evaluation of the same."
)
RETRIEVAL_BLOCK = 64  # queries at once: each ranks the whole gallery
LINEAR_BLOCKS = 4  # whose CLS tokens the linear protocol knows


def rate_knn(banks: dict, *, num_classes: int, width: int, mesh: Mesh) -> dict:
  """k-NN by all of train, and by a few images of each class."""
  settings = dict(
    num_classes=num_classes,
    ks=cli.integers(KS),
    temperature=TEMPERATURE.value,
    mesh=mesh,
  )
  del width
  found = knn.knn(banks["train"], banks["test"], field="--", **settings)
  if SHOTS.value:
    draws = dict(shots=cli.integers(SHOTS), tries=TRIES.value, seed=SEED.value)
    found |= few_shot.few_shot(banks["train"], banks["test"], **draws, **settings)
  return found


def rate_linear(banks: dict, *, num_classes: int, width: int, mesh: Mesh) -> dict:
  """The best of the linear protocol's heads, and all of them."""
  return linear.linear(
    banks["train"],
    banks["test"],
    val=banks.get("val"),
    width=width,
    num_classes=num_classes,
    steps=LINEAR_STEPS.value,
    batch_size=LINEAR_BATCH.value,
    seed=SEED.value,
    mesh=mesh,
  )


def rate_logreg(banks: dict, *, num_classes: int, width: int, mesh: Mesh) -> dict:
  """L2 logistic regression."""
  del width, mesh
  return logreg.logreg(
    banks["train"], banks["test"], num_classes=num_classes, seed=SEED.value
  )


def rate_retrieval(banks: dict, *, num_classes: int, width: int, mesh: Mesh) -> dict:
  """Mean average precision and recall of test's images among train's."""
  del num_classes, width
  queries = None if TRAIN.value == TEST.value else banks["test"]
  return retrieval.retrieval(
    banks["train"], queries, ks=cli.integers(RECALL), mesh=mesh, block=RETRIEVAL_BLOCK
  )


RATE = {
  "knn": rate_knn,
  "linear": rate_linear,
  "logreg": rate_logreg,
  "retrieval": rate_retrieval,
}


def columns(task: str, loaded: backbone.Backbone) -> tuple:
  """The features that a task reads, as of `backbone.columns`."""
  if task != "linear":
    return backbone.columns(backbone_flags.feature(loaded), backbone_flags.LAYERS.value)
  blocks = min(LINEAR_BLOCKS, loaded.module.depth)
  return (*backbone.columns("cls", blocks), ("gap", -1))


def check_flags() -> list[str]:
  """The tasks; UserError for the first flag that will not do."""
  for name in TASKS.value:
    if name not in RATE:
      raise errors.UserError(f"--tasks={name} must be some of {', '.join(RATE)}")
  for flag in (KS, RECALL, *([SHOTS] if SHOTS.value else [])):
    cli.integers(flag)
  for flag in (TRIES, LINEAR_STEPS, LINEAR_BATCH):
    if flag.value < 1:
      raise errors.UserError(f"--{flag.name}={flag.value} must be at least 1")
  for flag in (TRAIN, TEST):
    if not flag.value:
      raise errors.UserError(f"--{flag.name}=SOURCE is missing, such as folder:PHOTOS")
  return list(dict.fromkeys(TASKS.value))


def open_sources() -> dict[str, sources.Source]:
  """The labelled sources by name, with labels as --train numbers them.

  Raises:
    UserError: one has no labels, or other classes.
  """
  opened = {}
  for flag in (TRAIN, TEST, VAL):
    if not flag.value:
      continue
    source = sources.open_source(flag.value, field=f"--{flag.name}")
    if not source.class_names and source[0]["label"] < 0:
      raise errors.UserError(f"{source.where} has no labels; give a labelled source")
    opened[flag.name] = classes.match(opened.get("train", source), source)
  return opened


def count_classes(opened: dict, banks: dict) -> int:
  """Classes of the sources; where none says, one more than the highest label."""
  said = max(len(source.class_names) for source in opened.values())
  return said or 1 + max(int(bank.labels.max()) for bank in banks.values())


def extract(
  name: str,
  source: sources.Source,
  loaded: backbone.Backbone,
  present: tuple,
  mesh: Mesh,
) -> features.Bank:
  """The columns `present` of all images of a source."""
  transform = backbone_flags.image_sizes(loaded)
  batch_size = backbone_flags.batch_size(mesh.size)

  @jax.jit
  def apply(params, images):
    return backbone.image_columns(loaded.module, params, images, present)

  def compute():
    return features.extract(
      source,
      apply,
      loaded.params,
      mesh=mesh,
      batch_size=batch_size,
      workers=backbone_flags.WORKERS.value,
      description=f"features of {name}",
      **transform,
    )

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
      "dinojax": dinojax.__version__,
      **transform,
    },
    shape=(
      math.ceil(len(source) / batch_size),
      batch_size,
      len(present) * loaded.module.width,
    ),
    mesh=mesh,
  )


def record(about: dict, results: dict) -> None:
  """Writes --results, and adds the numbers to the metrics of the run that was rated."""
  if RESULTS.value and jax.process_index() == 0:
    try:
      text = json.dumps({**about, "results": results}, indent=2)
      pathlib.Path(RESULTS.value).write_text(text + "\n")
    except OSError as error:
      raise errors.UserError(
        f"--results={RESULTS.value} cannot be written: {error.strerror}"
      ) from error
  place = runs.locate(pathlib.Path(about["checkpoint"]), about["step"])
  if place is None:
    return
  workdir, step = place
  numbers = {f"eval_{k}": v for k, v in results.items() if isinstance(v, float)}
  writer = metrics.Writer(workdir, start_step=None)
  writer.write(step, numbers)
  writer.close()
  console.say(f"added to {workdir}/metrics.jsonl as step {step}")


def main(_) -> None:
  """Features of all sources, then one task after the other."""
  processes.join()
  tasks, opened = check_flags(), open_sources()
  mesh = sharding.make_mesh(data=1, fsdp=-1)
  with jax.set_mesh(mesh):
    if "linear" in tasks:
      linear.check_batch(LINEAR_BATCH.value, mesh)
    loaded = backbone_flags.load(mesh)
    about = {
      **backbone_flags.origin(loaded),
      "weights": loaded.fingerprint,
      **{name: flags.FLAGS[name].value for name in opened},
      **backbone_flags.image_sizes(loaded),
      "feature": backbone_flags.feature(loaded),
      "layers": backbone_flags.LAYERS.value,
      "dtype": loaded.module.dtype,
    }
    told = [f"{name} {value}" for name, value in about.items() if value is not None]
    console.say(", ".join(told))
    wanted = {task: columns(task, loaded) for task in tasks}
    present = tuple(sorted({column for some in wanted.values() for column in some}))
    banks = {
      name: extract(name, source, loaded, present, mesh)
      for name, source in opened.items()
    }
    num_classes, results = count_classes(opened, banks), {}
    for task in tasks:
      chosen = {
        name: features.select(bank, present, wanted[task])
        for name, bank in banks.items()
      }
      width = loaded.module.width
      images = ", ".join(f"{len(x):,} images of --{n}" for n, x in opened.items())
      console.say(f"{task}: {images}, {len(wanted[task]) * width:,} features each")
      results |= RATE[task](chosen, num_classes=num_classes, width=width, mesh=mesh)
  console.say(table.render(results))
  record(about, results)


if __name__ == "__main__":
  cli.run(main, on_interrupt="ended; nothing was written", config=False)
