"""Flags of fine-tuning: what is trained, on which images, how long and how fast."""

import math
import typing

from absl import flags

from dinojax import errors
from dinojax.commands import image_flags
from dinojax.data import sources

WAYS = {
  "head": "a linear head on the frozen backbone",
  "lora": "the head and low-rank updates of the attention (LoRA)",
  "all": "the head and all weights",
  "scratch": "the head and all weights, from random ones, to compare with",
}
# For a width of 1,024 and batches of 256, see `learning_rate`.
LEARNING_RATES = {"head": 3e-3, "lora": 1e-3, "all": 1e-4, "scratch": 3e-4}
HEAD_LR_SCALES = {"head": 1.0, "lora": 3.0, "all": 10.0, "scratch": 1.0}
TUNE = flags.DEFINE_enum(
  "tune",
  "head",
  list(WAYS),
  f"What is trained: {'; '.join(f'{k}: {x}' for k, x in WAYS.items())}.",
)
TASKS = {
  "classes": "one of each image",
  "labels": "any number of each image (multi-label), of sources csv:FILE",
  "segmentation": "one of each pixel, of sources with label maps",
}
TASK = flags.DEFINE_enum(
  "task",
  "classes",
  list(TASKS),
  f"What is learnt: {'; '.join(f'{k}: {x}' for k, x in TASKS.items())}.",
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; resumes one there.")
TRAIN = flags.DEFINE_string(
  "train", None, f"Labelled source to train on: one of {sources.USAGE}."
)
TEST = flags.DEFINE_string("test", None, "Labelled source to evaluate on.")
VAL = flags.DEFINE_string(
  "val", None, "Labelled source by which the best checkpoint is chosen; default --test."
)
STEPS = flags.DEFINE_integer("steps", 1_000, "Updates in all.")
WARMUP_STEPS = flags.DEFINE_integer(
  "warmup_steps", None, "Steps in which the learning rate rises; default 5%."
)
LEARNING_RATE = flags.DEFINE_float(
  "learning_rate",
  None,
  "Peak of the learning rate; default"
  f" {', '.join(f'{x:g} of {k}' for k, x in LEARNING_RATES.items())}, for a width of"
  " 1,024 and batches of 256; it falls with the width, and rises with the root of"
  " --batch_size.",
)
HEAD_LR_SCALE = flags.DEFINE_float(
  "head_lr_scale",
  None,
  "The head's learning rate, by --learning_rate: the head alone has random weights;"
  f" default {', '.join(f'{x:g} of {k}' for k, x in HEAD_LR_SCALES.items())}.",
)
WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.01, "Of AdamW; biases have none.")
LAYER_DECAY = flags.DEFINE_float(
  "layer_decay", 0.75, "all: each block's learning rate, by that of the next one."
)
LORA_RANK = flags.DEFINE_integer("lora_rank", 8, "lora: rank of the updates.")
LORA_ALPHA = flags.DEFINE_float(
  "lora_alpha", 16.0, "lora: updates are multiplied by this, and divided by the rank."
)
EMA = flags.DEFINE_float(
  "ema",
  0.0,
  "Momentum of a moving average of what is trained, which is then evaluated and saved;"
  " such as 0.999. 0: off.",
)
MIXUP = flags.DEFINE_float(
  "mixup", 0.0, "Alpha of Mixup, for long trainings, such as 0.2; 0: off."
)
CUTMIX = flags.DEFINE_float(
  "cutmix", 0.0, "Alpha of CutMix, for long trainings, such as 1; 0: off."
)
MIN_AREA = flags.DEFINE_float(
  "min_area", 0.2, "Least share of an image that a training crop shows; 1: all of it."
)
FLIP_PROB = flags.DEFINE_float(
  "flip_prob", 0.5, "Probability that a training crop is mirrored; 0 for writing."
)
EVAL_EVERY = flags.DEFINE_integer(
  "eval_every", 200, "Steps between two evaluations, each of which is saved."
)
LOG_EVERY = flags.DEFINE_integer("log_every", 10, "Steps between lines of metrics.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of first weights, order and crops.")
REMAT = flags.DEFINE_enum(
  "remat",
  "none",
  ["none", "matmuls", "attention", "full"],
  "Activation checkpointing, from fast to small; it changes no result.",
)
MAX_PIXELS = image_flags.define_max_pixels()
flags.declare_key_flag(MAX_PIXELS.name)


def check() -> None:
  """Raises UserError for the first flag that cannot work."""
  for flag, example in (
    (WORKDIR, "FOLDER is missing, such as runs/pets"),
    (TRAIN, "SOURCE is missing, such as folder:PHOTOS"),
    (TEST, "SOURCE is missing, such as folder:OTHERS"),
  ):
    if not flag.value:
      raise errors.UserError(f"--{flag.name}={example}")
  from_one = STEPS, LORA_RANK, EVAL_EVERY, LOG_EVERY
  for flag, limit in ((SEED, 0), *((flag, 1) for flag in from_one)):
    if flag.value < limit:
      raise errors.UserError(f"--{flag.name}={flag.value} must be at least {limit}")
  for flag in (LEARNING_RATE, HEAD_LR_SCALE, LORA_ALPHA):
    if flag.value is not None and not 0 < flag.value < math.inf:
      raise errors.UserError(f"--{flag.name}={flag.value} must be above 0")
  for flag in (WEIGHT_DECAY, MIXUP, CUTMIX):
    if not 0 <= flag.value < math.inf:
      raise errors.UserError(f"--{flag.name}={flag.value} must be at least 0")
  if TASK.value == "segmentation":
    for flag in (MIXUP, CUTMIX):
      if flag.value:
        raise errors.UserError(
          f"--{flag.name}={flag.value} is for whole images; leave it out with"
          " --task=segmentation"
        )
  if not 0 <= EMA.value < 1:
    raise errors.UserError(f"--ema={EMA.value} must be at least 0 and below 1")
  for flag in (LAYER_DECAY, MIN_AREA):
    if not 0 < flag.value <= 1:
      raise errors.UserError(f"--{flag.name}={flag.value} must be above 0, at most 1")
  if not 0 <= FLIP_PROB.value <= 1:
    raise errors.UserError(f"--flip_prob={FLIP_PROB.value} must be within 0 and 1")
  warmup, steps = warmup_steps(), STEPS.value
  if not 0 <= warmup < steps:
    raise errors.UserError(
      f"--warmup_steps={warmup} must be at least 0 and below --steps={steps}"
    )


def warmup_steps() -> int:
  """Those given, or 5% of all."""
  return STEPS.value // 20 if WARMUP_STEPS.value is None else WARMUP_STEPS.value


def learning_rate(*, width: int, batch_size: int) -> float:
  """That given, or the default for a network and a batch.

  Updates of AdamW are of one size whatever the gradient, so what they change in a sum
  over the width grows with it (arXiv:2203.03466), while the gradient's noise falls with
  the root of the batch (arXiv:2205.10287).

  Args:
    width: of the backbone.
    batch_size: images of a step.
  """
  if LEARNING_RATE.value is not None:
    return LEARNING_RATE.value
  rate = LEARNING_RATES[TUNE.value] * 1024 / width * math.sqrt(batch_size / 256)
  return float(f"{rate:.2g}")


def recipe(*, width: int, batch_size: int) -> dict[str, typing.Any]:
  """What a result depends on, of the flags here, by their names.

  Arguments as of `learning_rate`.
  """
  scale = HEAD_LR_SCALE.value
  own = (TASK, TUNE, STEPS, WEIGHT_DECAY, LAYER_DECAY, LORA_RANK, LORA_ALPHA)
  return {
    **{flag.name: flag.value for flag in (*own, SEED, MIN_AREA, FLIP_PROB)},
    **{flag.name: flag.value for flag in (EMA, MIXUP, CUTMIX)},
    "warmup_steps": warmup_steps(),
    "learning_rate": learning_rate(width=width, batch_size=batch_size),
    "head_lr_scale": HEAD_LR_SCALES[TUNE.value] if scale is None else scale,
    "batch_size": batch_size,
  }


def setup() -> dict[str, typing.Any]:
  """What changes no result, likewise."""
  own = (WORKDIR, EVAL_EVERY, LOG_EVERY, REMAT, MAX_PIXELS)
  return {flag.name: flag.value for flag in own}


def sources_given() -> dict[str, str]:
  """The sources by the names of their flags, "train" first."""
  return {flag.name: flag.value for flag in (TRAIN, TEST, VAL) if flag.value}
