"""Converts a backbone's weights between every format that dinojax knows.

  python -m dinojax.convert dinov2_vitg14_pretrain.pth weights/vitg14
  python -m dinojax.convert runs/vitg14 vitg14.pth
  python -m dinojax.convert runs/vitg14 vitg14-hf --to=huggingface

SRC is a run's workdir or one of its checkpoints (the teacher is taken), a folder that
this command wrote, a .pth that DINOv2's hub loads or a training run's teacher, a
.safetensors, or a folder of transformers' Dinov2Model or Dinov2WithRegistersModel. DST
must not exist; its ending chooses the format: .pth, .safetensors (Hugging Face's
names), or a folder of our own, which `config.init.backbone`, evaluate and embed read
like all the others. float32 throughout, and nothing is rounded.

DST can also be a program that runs elsewhere, from uint8 images of --size pixels to
features: .stablehlo (for jax.export.deserialize) or .onnx.
"""

import math
import pathlib

import jax
from absl import flags

from dinojax import backbone, errors, export
from dinojax.commands import backbone_flags, cli
from dinojax.reporting import console
from dinojax.weights import formats, model, state_dicts

TO = flags.DEFINE_enum(
  "to", None, formats.FORMATS, "Format of DST; default by its ending."
)
POS_GRID = flags.DEFINE_integer(
  "pos_grid",
  None,
  "Resizes the position embedding to a grid of so many patches along a side, by the"
  " model's own rule.",
)
SIZE = flags.DEFINE_integer(
  "size",
  None,
  "Of .stablehlo and .onnx: pixels of a side of the images; default the weights' own,"
  " at most 224.",
)
PROGRAMS = (".stablehlo", ".onnx")
for name in ("step", "heads", "pool"):
  flags.declare_key_flag(name)


def main(argv: list[str]) -> None:
  """Reads, checks, writes, and says what was what."""
  _, source, target = argv
  # Weights pass through the memory of the host alone.
  jax.config.update("jax_platforms", "cpu")
  weights = formats.read(
    source,
    step=backbone_flags.STEP.value,
    heads=backbone_flags.HEADS.value,
    pool=backbone_flags.POOL.value,
    parts=("backbone", *state_dicts.HEADS),
  )
  if POS_GRID.value is not None:
    if POS_GRID.value < 1:
      raise errors.UserError(f"--pos_grid={POS_GRID.value} must be at least 1")
    weights = model.with_pos_grid(weights, POS_GRID.value)
  if pathlib.Path(target).suffix in PROGRAMS:
    lost = write_program(weights, target)
  else:
    lost = formats.write(weights, target, TO.value or formats.guess(target))
  fields = ", ".join(f"{name}={weights.backbone[name]}" for name in model.ARCHITECTURE)
  console.say(f"{source}: {fields}")
  for part, tree in weights.params.items():
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    console.say(f"  {part}: {count:,} parameters")
  for line in lost:
    console.say(f"  not kept, {line}")
  console.say(f"written to {target}")


def write_program(weights: model.Weights, target: str) -> list[str]:
  """Writes .stablehlo or .onnx; returns what it does not hold."""
  path = formats.free_path(target)
  arrays = formats.free_path(f"{target}.data")  # where ONNX keeps those that are large
  loaded = backbone.of_weights(weights)
  size = SIZE.value or loaded.sizes["crop"]
  export.write(loaded, size, path)
  console.say(f"for images [B, {size}, {size}, 3] uint8, of any B")
  if arrays.exists():
    console.say(f"  {arrays.name} holds its arrays; keep the two together")
  return [f"{part}: it gives features" for part in weights.params if part != "backbone"]


if __name__ == "__main__":
  cli.run(
    main,
    on_interrupt="ended; nothing was written",
    config=False,
    arguments="SRC DST",
  )
