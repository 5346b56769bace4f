"""Converts a backbone's weights between every format that dinojax reads.

  python -m dinojax.convert dinov2_vitg14_pretrain.pth weights/vitg14
  python -m dinojax.convert runs/vitg14 vitg14.pth
  python -m dinojax.convert runs/vitg14 vitg14-hf --to=huggingface

SRC is one of
  a run's workdir or one of its checkpoints (its teacher is read)
  a folder that this command wrote
  a .pth: of DINOv2's hub, of a training run's teacher, or of training code around them
  a .safetensors
  a folder of transformers' Dinov2Model or Dinov2WithRegistersModel, also with a
  classifier on top, which is left aside
DST must not exist. Its ending chooses the format: .pth, .safetensors (with Hugging
Face's names), or none for a folder of our own. `config.init.backbone`, evaluate and
embed read all of them. Everything is float32; nothing is rounded.

DST can also be a program that runs elsewhere, from images of --size pixels, as they are
stored, to features: .stablehlo (for jax.export.deserialize) or .onnx. With --head, from
a workdir of dinojax.finetune to the probabilities of its classes, which DST.json names.
"""

import json
import math
import pathlib

import jax
from absl import flags

from dinojax import backbone, classifier, errors, export
from dinojax.commands import backbone_flags, cli
from dinojax.reporting import console
from dinojax.weights import formats, model, wrappers

TO = flags.DEFINE_enum(
  "to", None, formats.FORMATS, "Format of DST; default by its ending."
)
POS_GRID = flags.DEFINE_integer(
  "pos_grid",
  None,
  "Resizes the position embeddings to a grid of this many patches along a side, as the"
  " network does for images of that size.",
)
SIZE = flags.DEFINE_integer(
  "size",
  None,
  "For .stablehlo and .onnx: side of the images in pixels; default the weights' own,"
  " at most 224.",
)
HEAD = flags.DEFINE_bool(
  "head",
  False,
  "For .stablehlo and .onnx of a fine-tuning: probabilities of its classes, instead of"
  " features.",
)
PROGRAMS = (".stablehlo", ".onnx")
CHOICES = ("heads", "pool", "rope_periods")
for name in ("step", *CHOICES):
  flags.declare_key_flag(name)


def main(argv: list[str]) -> None:
  """Reads, checks and writes weights; prints what they are on stdout."""
  _, source, target = argv
  # Weights need the memory of the host alone.
  jax.config.update("jax_platforms", "cpu")
  if HEAD.value:
    write_classifier(source, target)
    return
  weights = formats.read(
    source,
    step=backbone_flags.STEP.value,
    heads=backbone_flags.HEADS.value,
    pool=backbone_flags.POOL.value,
    rope_periods=backbone_flags.ROPE_PERIODS.value,
    parts=("backbone", *wrappers.HEADS),
  )
  if POS_GRID.value is not None:
    if not 1 <= POS_GRID.value <= model.LARGEST:
      raise errors.UserError(
        f"--pos_grid={POS_GRID.value} must be within 1 and {model.LARGEST}"
      )
    weights = model.with_pos_grid(weights, POS_GRID.value)
  if pathlib.Path(target).suffix in PROGRAMS:
    lost = write_program(weights, target)
  else:
    lost = formats.write(weights, target, TO.value or formats.guess(target))
  for line in lost:
    console.say(f"not stored in {target}: {line}")
  # Of what DINOv3 changed, only what is not as in DINOv2.
  own = {
    name: value
    for name, value in weights.backbone.items()
    if value != model.DEFAULTS.get(name, ...)
  }
  fields = ", ".join(
    f"{name}={own[name]}" for name in model.ARCHITECTURE if name in own
  )
  print(f"{source}: {fields}")
  for part, tree in weights.params.items():
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    print(f"  {part}: {count:,} parameters")
  print(f"written to {target}")


def write_program(weights: model.Weights, target: str) -> list[str]:
  """Writes .stablehlo or .onnx; returns what it cannot store."""
  if TO.value:
    raise errors.UserError(f"--to={TO.value} is a format of weights; leave it out here")
  loaded = backbone.of_weights(weights)
  _write(export.of_backbone(loaded), loaded, target)
  return [
    f"{part}: a program gives features" for part in weights.params if part != "backbone"
  ]


def write_classifier(source: str, target: str) -> None:
  """Writes .stablehlo or .onnx of a fine-tuning, and .json of its classes beside it."""
  if pathlib.Path(target).suffix not in PROGRAMS:
    raise errors.UserError(
      f"--head is for programs, and {target} is none; give {' or '.join(PROGRAMS)}"
    )
  for flag in (TO, POS_GRID, *(flags.FLAGS[name] for name in CHOICES)):
    if flag.value is not None:
      raise errors.UserError(
        f"--{flag.name}={flag.value} and --head exclude each other"
      )
  made = classifier.load(source, step=backbone_flags.STEP.value)
  _write(made.program(), made.backbone, target, class_names=made.class_names)
  (name,) = made.program().outputs
  print(f"gives {name} of {len(made.class_names)} classes")
  print(f"  {pathlib.Path(target).name}.json holds their names")
  print(f"written to {target}")


def _write(
  program: export.Program,
  loaded: backbone.Backbone,
  target: str,
  *,
  class_names: tuple[str, ...] = (),
) -> None:
  """Writes a program; a .json beside it has the names of the classes, if it has any."""
  path, about = formats.free_path(target), None
  arrays = formats.free_path(f"{target}.data")  # where ONNX stores the large ones
  if class_names:
    about = formats.free_path(f"{target}.json")
  size = loaded.sizes["crop"] if SIZE.value is None else SIZE.value
  with formats.moved_when_complete(path) as new:
    export.write(program, size, new)
    if about:
      sizes = loaded.image_sizes(resize=None, crop=size)
      text = json.dumps({"class_names": class_names, **sizes})
      new.with_name(about.name).write_text(f"{text}\n")
  channels, dtype = loaded.layout
  print(f"takes images [B, {size}, {size}, {channels}] {dtype}, any B")
  if arrays.exists():
    print(f"  {arrays.name} holds its arrays; keep the two together")


if __name__ == "__main__":
  cli.run(
    main,
    on_interrupt="interrupted; nothing is written",
    config=False,
    arguments="SRC DST",
  )
