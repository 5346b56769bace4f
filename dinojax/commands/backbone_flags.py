"""Flags of the commands that use a frozen backbone: its weights, and how images fit."""

import pathlib

from absl import flags
from jax.sharding import Mesh

from dinojax import backbone, errors
from dinojax.weights import model, runs

CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "Weights: a run's workdir, one of its checkpoints, .pth, .safetensors, or a Hugging"
  " Face folder.",
)
STEP = flags.DEFINE_integer("step", None, "Of a run: which step; default the newest.")
HEADS = flags.DEFINE_integer(
  "heads", None, "Attention heads, if the file does not say; default D / 64."
)
POOL = flags.DEFINE_enum(
  "pool",
  None,
  ["cls", "gap"],
  "Image feature of these weights; default a run's own, and cls of other weights.",
)
DTYPE = flags.DEFINE_enum(
  "dtype",
  "float32",
  ["float32", "bfloat16"],
  "Of matrix products; bfloat16 is faster on accelerators.",
)
FEATURE = flags.DEFINE_enum(
  "feature", None, list(backbone.FEATURES), "Image feature; default that of --pool."
)
LAYERS = flags.DEFINE_integer(
  "layers", 1, "Image features of so many of the last blocks, side by side."
)
CROP = flags.DEFINE_integer(
  "crop",
  None,
  "Pixels of a side that the network sees, at the centre; default what the weights"
  " say (a run: that of its k-NN), and else their own size, at most 224.",
)
RESIZE = flags.DEFINE_integer(
  "resize",
  None,
  "Pixels of the shorter side before; default what the weights say, or 8/7 of --crop.",
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images at a time, of all hosts.")
WORKERS = flags.DEFINE_integer(
  "workers", 2, "Processes per host that decode images; 0: threads of this one."
)
NAMES = (
  *("checkpoint", "step", "heads", "pool", "dtype", "feature", "layers", "crop"),
  *("resize", "batch_size", "workers"),
)


def load(mesh: Mesh) -> backbone.Backbone:
  """The backbone that the flags name, on a mesh; UserError if it cannot be had."""
  if not CHECKPOINT.value:
    raise errors.UserError("--checkpoint=WEIGHTS is missing; give a run's workdir")
  loaded = backbone.load(
    CHECKPOINT.value,
    step=STEP.value,
    heads=HEADS.value,
    pool=POOL.value,
    mesh=mesh,
    dtype=DTYPE.value,
  )
  depth = loaded.module.depth
  if not 1 <= LAYERS.value <= depth:
    raise errors.UserError(f"--layers={LAYERS.value} must be within 1 and {depth}")
  return loaded


def origin(loaded: backbone.Backbone) -> dict[str, str | int | None]:
  """What the weights are, by the flags that choose them; "step" is None of no run."""
  place = runs.locate(pathlib.Path(CHECKPOINT.value), STEP.value)
  return {
    "checkpoint": CHECKPOINT.value,
    "step": place and place[1],
    "heads": loaded.module.heads,
    "pool": loaded.module.pool,
  }


def feature(loaded: backbone.Backbone) -> str:
  """The image feature to take."""
  return FEATURE.value or loaded.module.pool


def transform(loaded: backbone.Backbone) -> dict[str, int]:
  """{"resize", "crop"} in pixels; UserError if the network cannot see such images."""
  patch = loaded.module.patch_size
  crop = CROP.value or default_crop(loaded)
  own = loaded.sizes if loaded.sizes.get("crop") == crop else {}
  resize = RESIZE.value or own.get("resize", model.usual_resize(crop))
  if crop < patch or crop % patch:
    raise errors.UserError(
      f"--crop={crop} must be a multiple of the patch size, {patch}; try"
      f" {max(round(crop / patch), 1) * patch}"
    )
  if resize < crop:
    raise errors.UserError(f"--resize={resize} must be at least --crop={crop}")
  return {"resize": resize, "crop": crop}


def default_crop(loaded: backbone.Backbone) -> int:
  """Pixels of a side of the images that these weights are for."""
  if loaded.sizes:
    return loaded.sizes["crop"]
  return model.usual_crop(
    patch_size=loaded.module.patch_size, pos_grid=loaded.module.pos_grid
  )


def batch_size(devices: int) -> int:
  """Images of a batch, a multiple of the devices; the default is rounded up."""
  size = BATCH_SIZE.value
  if size < 1 or (size % devices and BATCH_SIZE.present):
    raise errors.UserError(
      f"--batch_size={size} must be a multiple of {devices} devices; try"
      f" {max(-(-size // devices), 1) * devices}"
    )
  return -(-size // devices) * devices
