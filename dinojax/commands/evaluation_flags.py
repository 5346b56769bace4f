"""Flags of the evaluation of a backbone: its tasks, their sources and settings."""

import math

from absl import flags

from dinojax import errors
from dinojax.commands import cli, image_flags
from dinojax.data import sources

DENSE = ("knn_segmentation", "linear_segmentation")  # tasks of patches and label maps
NAMES = ("knn", "linear", "logreg", "retrieval", *DENSE)
TASKS = flags.DEFINE_list(
  "tasks", ["knn"], f"Some of {', '.join(NAMES)}, separated by commas."
)
TRAIN = flags.DEFINE_string(
  "train",
  None,
  "Labelled source: neighbours, training images of classifiers, gallery; for"
  " segmentation with label maps, as 'folder:PATH?masks=PATH'. One of"
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
  "Labelled source on which linear tasks choose their best head; default --test, as"
  " published numbers do.",
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
SEGMENTATION_K = flags.DEFINE_integer(
  "segmentation_k", 30, "knn_segmentation: number of neighbours of a patch."
)
SEGMENTATION_TEMPERATURE = flags.DEFINE_float(
  "segmentation_temperature", 0.02, "knn_segmentation: of the softmax of votes."
)
SEGMENTATION_MEMORY = flags.DEFINE_integer(
  "segmentation_memory", 1_024_000, "Segmentation: most patches of --train kept."
)
SEGMENTATION_STEPS = flags.DEFINE_integer(
  "segmentation_steps", 5_000, "linear_segmentation: steps of AdamW."
)
SEGMENTATION_BATCH = flags.DEFINE_integer(
  "segmentation_batch", 4_096, "linear_segmentation: patches per step."
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of draws, first weights and order.")
RESULTS = flags.DEFINE_string("results", None, "Also writes everything to this JSON.")
MAX_PIXELS = image_flags.define_max_pixels()
flags.declare_key_flag(MAX_PIXELS.name)
CACHE = flags.DEFINE_string(
  "cache", None, "Folder that keeps features for the next evaluation of the same."
)
# Rows of a step, which the devices have to divide, by task.
BATCHES = {"linear": LINEAR_BATCH, "linear_segmentation": SEGMENTATION_BATCH}


def checked_tasks() -> list[str]:
  """The tasks to do, of NAMES; UserError for the first flag that cannot work."""
  for name in TASKS.value or [""]:
    if name not in NAMES:
      raise errors.UserError(f"--tasks={name} must be some of {', '.join(NAMES)}")
  sizes = TRIES, LINEAR_STEPS, LINEAR_BATCH, SEGMENTATION_K, SEGMENTATION_MEMORY
  sizes += SEGMENTATION_STEPS, SEGMENTATION_BATCH
  for flag, least in ((SEED, 0), *((flag, 1) for flag in sizes)):
    if flag.value < least:
      raise errors.UserError(f"--{flag.name}={flag.value} must be at least {least}")
  for flag in (TEMPERATURE, SEGMENTATION_TEMPERATURE):
    if not 0 < flag.value < math.inf:
      raise errors.UserError(f"--{flag.name}={flag.value} must be above 0")
  for flag in (TRAIN, TEST):
    if not flag.value:
      raise errors.UserError(f"--{flag.name}=SOURCE is missing, such as folder:PHOTOS")
  return list(dict.fromkeys(TASKS.value))


def settings() -> dict[str, dict]:
  """The fields of each task, by its name; UserError if a list is none of numbers."""
  seed = {"seed": SEED.value}
  patches = {"memory": SEGMENTATION_MEMORY.value, **seed}
  return {
    "knn": {
      "ks": cli.integers(KS),
      "temperature": TEMPERATURE.value,
      "shots": cli.integers(SHOTS) if SHOTS.value else (),
      "tries": TRIES.value,
      **seed,
    },
    "linear": {"steps": LINEAR_STEPS.value, "batch_size": LINEAR_BATCH.value, **seed},
    "logreg": seed,
    "retrieval": {
      "recall": cli.integers(RECALL),
      "test_is_train": TRAIN.value == TEST.value,
    },
    "knn_segmentation": {
      "k": SEGMENTATION_K.value,
      "temperature": SEGMENTATION_TEMPERATURE.value,
      **patches,
    },
    "linear_segmentation": {
      "steps": SEGMENTATION_STEPS.value,
      "batch_size": SEGMENTATION_BATCH.value,
      **patches,
    },
  }


def sources_given() -> dict[str, str]:
  """The sources by the names of their flags, "train" first."""
  return {flag.name: flag.value for flag in (TRAIN, TEST, VAL) if flag.value}
