"""Preview of the augmentations: a picture of images and the crops made of them.

  python -m dinojax.preview --config=experiments/vits14.py \
    --images=folder:/data/photos --out=preview.png

A row is one image as stored, then its global crops, then its local crops. All crops are
enlarged by the same factor, so that their sizes can be compared. To try other
augmentations, override fields of the config as in training, for example by
--config.augment.local.area='(0.1, 0.4)'. No accelerator is used: a preview can be made
while a run trains.
"""

import functools
import pathlib
import sys

import numpy as np
from absl import flags
from PIL import Image

from dinojax import durable, errors, preflight
from dinojax.commands import cli
from dinojax.data import augment, bad_records, images, sources

flags.declare_key_flag("config")  # so that --help shows it
IMAGES = flags.DEFINE_string(
  "images",
  None,
  f"Source of images: {sources.USAGE}.",
)
OUT = flags.DEFINE_string("out", None, "Picture to write, .png or .jpg.")
COUNT = flags.DEFINE_integer(
  "count", 8, "Number of images, evenly spaced over the source."
)
MAX_COUNT = 200  # a JPEG has at most 65,535 rows
CELL, GAP, WHITE = 224, 6, 255  # pixels of a global crop's cell, and between cells


def sheet(rows: list[tuple[np.ndarray, dict[str, np.ndarray]]]) -> np.ndarray:
  """Draws the picture.

  Args:
    rows: image uint8 [H, W, 3] and its crops, as `augment.MultiCrop` returns them.

  Returns:
    uint8 [H', W', 3].
  """
  return _stack([_row(image, crops) for image, crops in rows], axis=0)


def _row(image, crops):
  side, local_side = (crops[name].shape[1] for name in ("global_crops", "local_crops"))
  zoom = max(CELL // side, 1)
  cells = [_fitted(image, side * zoom)]
  cells += [_enlarged(crop, zoom) for crop in crops["global_crops"]]
  local_crops = [_enlarged(crop, zoom) for crop in crops["local_crops"]]
  high = max((side * zoom + GAP) // (local_side * zoom + GAP), 1)
  columns = [local_crops[i : i + high] for i in range(0, len(local_crops), high)]
  return _stack([*cells, *(_stack(column, axis=0) for column in columns)], axis=1)


def _fitted(image, side):
  """The whole image, resized to fit into a square."""
  fitted = Image.fromarray(image)
  scale = side / max(fitted.size)
  size = [max(round(length * scale), 1) for length in fitted.size]
  canvas = np.full((side, side, 3), WHITE, np.uint8)
  canvas[: size[1], : size[0]] = fitted.resize(size, Image.Resampling.BICUBIC)
  return canvas


def _enlarged(crop, zoom):
  return crop.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _stack(parts, *, axis):
  """Parts side by side along an axis, with white between and beside them."""
  across = max(part.shape[1 - axis] for part in parts)
  padded = []
  for part in parts:
    margins = [[0, 0], [0, 0], [0, 0]]
    margins[axis][1], margins[1 - axis][1] = GAP, across - part.shape[1 - axis]
    padded.append(np.pad(part, margins, constant_values=WHITE))
  return np.concatenate(padded, axis=axis)


def main(_) -> None:
  """Writes the picture."""
  config = cli.CONFIG.value
  preflight.check(config, devices=None)
  if not IMAGES.value:
    raise errors.UserError("--images=SOURCE is missing; try folder:PATH")
  if not OUT.value:
    raise errors.UserError("--out=FILE is missing; try preview.png")
  out = pathlib.Path(OUT.value).expanduser()
  if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
    raise errors.UserError(f"--out={out} must end in .png or .jpg")
  if not 1 <= COUNT.value <= MAX_COUNT:
    raise errors.UserError(f"--count={COUNT.value} must be within 1 and {MAX_COUNT}")
  durable.check_file(OUT.value, flag="--out", example="preview.png")
  source = sources.open_source(IMAGES.value, field="--images")
  multi_crop = augment.make_multi_crop(
    **config.augment.to_dict(), max_pixels=config.data.max_pixels
  )
  rows, count = [], min(COUNT.value, len(source))
  for index in np.linspace(0, len(source) - 1, count, dtype=int).tolist():
    rng = np.random.default_rng((config.seed, index))
    make_row = functools.partial(_with_original, multi_crop, rng)
    row, _, reason = bad_records.read_or_substitute(source, index, make=make_row)
    rows.append(row)
    if reason:
      name = source.name(index)
      print(f"corrupt image substituted: {name}: {reason}", file=sys.stderr)
  try:
    Image.fromarray(sheet(rows)).save(out)
  except OSError as error:
    raise errors.UserError(f"--out={out} cannot be written: {error}") from error
  print(f"{out}: {len(rows)} images and their crops")


def _with_original(multi_crop, rng, image):
  shown = images.decode(image, max_pixels=multi_crop.max_pixels)
  return shown, multi_crop(rng, image)


if __name__ == "__main__":
  cli.run(main, on_interrupt="interrupted; no picture is written")
