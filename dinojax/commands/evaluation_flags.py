"""Flags of the evaluation of a backbone: its tasks, their sources and settings."""

import itertools
import math

from absl import flags

from dinojax import errors
from dinojax.commands import cli, image_flags
from dinojax.data import depth_maps, sources
from dinojax.evals import suites

# Tasks by what they read: features of images, their patches, these and label maps,
# these and depth maps.
FEATURES = ("knn", "linear", "logreg", "retrieval")
TOKENS = ("attentive",)
WITHOUT_TRAINING = ("knn_segmentation", "logreg_segmentation")  # tasks=segmentation
MAPS = (*WITHOUT_TRAINING, "linear_segmentation")
DEPTH = ("depth",)
KINDS = FEATURES, TOKENS, MAPS, DEPTH
NAMES = tuple(itertools.chain(*KINDS))
SUITE = flags.DEFINE_enum(
  "suite",
  None,
  list(suites.SUITES),
  "Evaluates its data sets by published protocols, beside published figures. It sets"
  " sources, and --tasks, --resize, --crop and others where they are not given.",
)
SETS = flags.DEFINE_list("sets", [], "Of a suite only these data sets; default all.")
TASKS = flags.DEFINE_list(
  "tasks",
  ["knn"],
  f"Some of {', '.join(NAMES)}, separated by commas;"
  f" segmentation: {' and '.join(WITHOUT_TRAINING)}.",
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
  " published numbers do. Of attentive: default a tenth of --train.",
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
  "segmentation_memory",
  1_024_000,
  "Segmentation without training: most patches of --train kept.",
)
WINDOW = flags.DEFINE_integer(
  "window",
  None,
  "Tasks of label and depth maps: pixels of windows that slide over squares of --crop,"
  " which the network sees one by one; default --crop.",
)
SEGMENTATION_STEPS = flags.DEFINE_integer(
  "segmentation_steps", 40_000, "linear_segmentation: steps of AdamW."
)
SEGMENTATION_BATCH = flags.DEFINE_integer(
  "segmentation_batch", 16, "linear_segmentation: images per step."
)
DEPTH_STEPS = flags.DEFINE_integer("depth_steps", 38_400, "depth: steps of AdamW.")
DEPTH_BATCH = flags.DEFINE_integer("depth_batch", 16, "depth: images per step.")
DEPTH_MIN = flags.DEFINE_float("depth_min", 0.001, "depth: nearest that counts, m.")
DEPTH_MAX = flags.DEFINE_float("depth_max", 10.0, "depth: farthest that counts, m.")
DEPTH_CROP = flags.DEFINE_enum(
  "depth_crop",
  "none",
  depth_maps.CROPS,
  "depth: where errors are measured; eigen is the usual one for NYU.",
)
ATTENTIVE_STEPS = flags.DEFINE_integer(
  "attentive_steps", 12_500, "attentive: steps of AdamW."
)
ATTENTIVE_BATCH = flags.DEFINE_integer(
  "attentive_batch", 1_024, "attentive: images per step."
)
MIN_AREA = flags.DEFINE_float(
  "min_area", 0.08, "attentive: least share of an image that a training crop shows."
)
FLIP_PROB = flags.DEFINE_float(
  "flip_prob",
  0.5,
  "attentive, linear_segmentation, depth: probability that a training crop is mirrored;"
  " 0 for writing.",
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of draws, first weights and order.")
RESULTS = flags.DEFINE_string("results", None, "Also writes everything to this JSON.")
MAX_PIXELS = image_flags.define_max_pixels()
flags.declare_key_flag(MAX_PIXELS.name)
CACHE = flags.DEFINE_string(
  "cache", None, "Folder that keeps features for the next evaluation of the same."
)
# Rows of a step, which the devices have to divide, by task.
BATCHES = {
  "linear": LINEAR_BATCH,
  "attentive": ATTENTIVE_BATCH,
  "linear_segmentation": SEGMENTATION_BATCH,
  "depth": DEPTH_BATCH,
}


def apply_suite() -> None:
  """Sets the defaults of a suite; UserError for flags that it cannot go with."""
  if not SUITE.value:
    if SETS.value:
      raise errors.UserError("--sets chooses data sets of a suite; give --suite, too")
    return
  suite = suites.SUITES[SUITE.value]
  for flag in (TRAIN, TEST, VAL):
    if flag.value:
      raise errors.UserError(
        f"--suite={SUITE.value} has sources of its own; leave out --{flag.name}, or"
        " --suite"
      )
  for name in SETS.value:
    if name not in suite.sets:
      raise errors.UserError(f"--sets={name} must be some of {', '.join(suite.sets)}")
  for name, value in suite.flags.items():
    flags.FLAGS.set_default(name, value)
  if others := [name for name in TASKS.value if name not in suites.TASKS]:
    raise errors.UserError(
      f"--tasks={others[0]} is none that a suite does; give --suite some of"
      f" {', '.join(suites.TASKS)}"
    )


def checked_tasks() -> list[str]:
  """The tasks to do, of NAMES; UserError for the first flag that cannot work."""
  names = []
  for name in TASKS.value or [""]:
    names += WITHOUT_TRAINING if name == "segmentation" else [name]
  for name in names:
    if name not in NAMES:
      raise errors.UserError(f"--tasks={name} must be some of {', '.join(NAMES)}")
  sizes = TRIES, LINEAR_STEPS, LINEAR_BATCH, SEGMENTATION_K, SEGMENTATION_MEMORY
  sizes += SEGMENTATION_STEPS, SEGMENTATION_BATCH, ATTENTIVE_STEPS, ATTENTIVE_BATCH
  sizes += DEPTH_STEPS, DEPTH_BATCH
  for flag, least in ((SEED, 0), *((flag, 1) for flag in sizes)):
    if flag.value < least:
      raise errors.UserError(f"--{flag.name}={flag.value} must be at least {least}")
  for flag in (TEMPERATURE, SEGMENTATION_TEMPERATURE):
    if not 0 < flag.value < math.inf:
      raise errors.UserError(f"--{flag.name}={flag.value} must be above 0")
  if not 0 < MIN_AREA.value <= 1:
    raise errors.UserError(f"--min_area={MIN_AREA.value} must be above 0, at most 1")
  if not 0 < DEPTH_MIN.value < DEPTH_MAX.value < math.inf:
    raise errors.UserError(
      f"--depth_min={DEPTH_MIN.value} must be above 0, and below"
      f" --depth_max={DEPTH_MAX.value}"
    )
  if not 0 <= FLIP_PROB.value <= 1:
    raise errors.UserError(f"--flip_prob={FLIP_PROB.value} must be within 0 and 1")
  for flag in () if SUITE.value else (TRAIN, TEST):
    if not flag.value:
      raise errors.UserError(f"--{flag.name}=SOURCE is missing, such as folder:PHOTOS")
  return list(dict.fromkeys(names))


def settings() -> dict[str, dict]:
  """The fields of each task, by its name; UserError if a list is none of numbers."""
  seed = {"seed": SEED.value}
  patches = {"memory": SEGMENTATION_MEMORY.value, **seed}
  crops = {"flip_prob": FLIP_PROB.value, **seed}
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
    "attentive": {
      "steps": ATTENTIVE_STEPS.value,
      "batch_size": ATTENTIVE_BATCH.value,
      "min_area": MIN_AREA.value,
      **crops,
    },
    "knn_segmentation": {
      "k": SEGMENTATION_K.value,
      "temperature": SEGMENTATION_TEMPERATURE.value,
      **patches,
    },
    "logreg_segmentation": patches,
    "linear_segmentation": {
      "steps": SEGMENTATION_STEPS.value,
      "batch_size": SEGMENTATION_BATCH.value,
      **crops,
    },
    "depth": {
      "low": DEPTH_MIN.value,
      "high": DEPTH_MAX.value,
      "crop": DEPTH_CROP.value,
      "steps": DEPTH_STEPS.value,
      "batch_size": DEPTH_BATCH.value,
      **crops,
    },
  }


def sources_given() -> dict[str, dict[str, str]]:
  """The sources by data set and the names of their flags, "train" first.

  Without a suite the data set is called "".
  """
  if not SUITE.value:
    return {"": {flag.name: flag.value for flag in (TRAIN, TEST, VAL) if flag.value}}
  sets = suites.SUITES[SUITE.value].sets
  return {name: specs for name, specs in sets.items() if name in (SETS.value or sets)}
