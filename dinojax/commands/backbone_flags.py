"""Flags of the commands that use a frozen backbone: its weights, and how images fit.

Importing it loads no JAX, as all of commands/.
"""

from __future__ import annotations

import typing

from absl import flags

from dinojax import errors
from dinojax.runtime import watchdog

if typing.TYPE_CHECKING:
  from jax.sharding import Mesh

  from dinojax import backbone

CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "Weights: a run's workdir, one of its checkpoints, .pth, .safetensors, or a Hugging"
  " Face folder.",
)
STEP = flags.DEFINE_integer("step", None, "Step of a run; default its newest.")
HEADS = flags.DEFINE_integer(
  "heads", None, "Attention heads, if the file does not say; default D / 64."
)
POOL = flags.DEFINE_enum(
  "pool",
  None,
  ["cls", "gap"],
  "Image feature of these weights; default a run's own, and cls of other weights.",
)
ROPE_PERIODS = flags.DEFINE_enum(
  "rope_periods",
  None,
  ["float32", "bfloat16"],
  "Type to which periods of rotary positions are rounded: bfloat16, as released DINOv3"
  " .pth files hold them, or exact; default what the weights say, and else exact.",
)
DTYPE = flags.DEFINE_enum(
  "dtype",
  "float32",
  ["float32", "bfloat16"],
  "Type of matrix products; bfloat16 is faster on accelerators.",
)
FEATURE = flags.DEFINE_enum(
  "feature",
  None,
  ["cls", "gap", "cls+gap"],
  "Image feature: CLS token, mean patch token, or both; default that of --pool.",
)
LAYERS = flags.DEFINE_integer(
  "layers", 1, "Concatenates the image features of this many last blocks."
)
CROP = flags.DEFINE_integer(
  "crop",
  None,
  "Side of the centre crop in pixels; default what the weights say (a run: that of its"
  " k-NN evaluation, or of its global crops if that is off), and else their own size,"
  " at most 224.",
)
RESIZE = flags.DEFINE_integer(
  "resize",
  None,
  "Shorter side in pixels before the crop; default what the weights say, or 8/7 of"
  " --crop.",
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images per batch, on all hosts.")
WORKERS = flags.DEFINE_integer(
  "workers", 2, "Processes per host that decode images; 0: threads of this one."
)
HANG_MINUTES = flags.DEFINE_float(
  "hang_minutes",
  30,
  "Without images for so long, ends with status 75; 0: waits for ever.",
  lower_bound=0,
)
NAMES = (
  *("checkpoint", "step", "heads", "pool", "rope_periods", "dtype", "feature"),
  *("layers", "crop", "resize", "batch_size", "workers", "hang_minutes"),
)


def open_watchdog() -> watchdog.Watchdog:
  """Ends the command when no images have come for --hang_minutes."""
  return watchdog.Watchdog(HANG_MINUTES.value, setting="--hang_minutes")


def load(mesh: Mesh) -> backbone.Backbone:
  """The backbone that the flags name, on a mesh; UserError if it cannot be loaded."""
  from dinojax import backbone

  if not CHECKPOINT.value:
    raise errors.UserError("--checkpoint=WEIGHTS is missing; give a run's workdir")
  if WORKERS.value < 0:
    raise errors.UserError(f"--workers={WORKERS.value} must be at least 0")
  loaded = backbone.load(
    CHECKPOINT.value,
    step=STEP.value,
    heads=HEADS.value,
    pool=POOL.value,
    rope_periods=ROPE_PERIODS.value,
    mesh=mesh,
    dtype=DTYPE.value,
  )
  depth = loaded.module.depth
  if not 1 <= LAYERS.value <= depth:
    raise errors.UserError(f"--layers={LAYERS.value} must be within 1 and {depth}")
  return loaded


def origin(loaded: backbone.Backbone) -> dict[str, str | int | None]:
  """What the weights are, by the flags that choose them; "step" is None of no run."""
  return {
    "checkpoint": CHECKPOINT.value,
    "step": loaded.run and loaded.run[1],
    "heads": loaded.module.heads,
    "pool": loaded.module.pool,
  }


def feature(loaded: backbone.Backbone) -> str:
  """The name of the image feature."""
  return FEATURE.value or loaded.module.pool


def image_sizes(loaded: backbone.Backbone) -> dict[str, int]:
  """{"resize", "crop"} in pixels; UserError if the network cannot see such images."""
  return loaded.image_sizes(resize=RESIZE.value, crop=CROP.value)


def batch_size(devices: int, *, at_most: int | None = None) -> int:
  """Images of a batch, a multiple of the devices; the default is rounded up.

  Args:
    devices: that share a batch.
    at_most: limit of the default, before it is rounded; None: none.
  """
  size = BATCH_SIZE.value
  given = not flags.FLAGS[BATCH_SIZE.name].using_default_value
  if size < 1 or (given and size % devices):
    raise errors.UserError(
      f"--batch_size={size} must be a multiple of {devices} devices; try"
      f" {max(-(-size // devices), 1) * devices}"
    )
  if at_most and not given:
    size = min(size, at_most)
  return -(-size // devices) * devices
