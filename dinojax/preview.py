"""Contact sheet of what the network sees: images, and the crops made of them.

  python -m dinojax.preview --images=SOURCE --config=FILE --out=sheet.png

Each row is one image as stored, then its global crops, then its local crops, all
enlarged alike, so that sizes compare. Fields of the config can be overridden as in
training, which helps to choose them.
"""

import functools
import pathlib

import numpy as np
from absl import flags
from PIL import Image

from dinojax import errors, preflight
from dinojax.commands import cli
from dinojax.data import augment, bad_records, images, sources
from dinojax.reporting import console

flags.declare_key_flag("config")  # so that --help shows it
IMAGES = flags.DEFINE_string("images", None, "Source of images, as folder:PATH.")
OUT = flags.DEFINE_string("out", None, "Picture to write, .png or .jpg.")
COUNT = flags.DEFINE_integer("count", 8, "Images, evenly spaced over the source.")
CELL, GAP, WHITE = 224, 6, 255  # pixels of a global crop's cell, and between cells


def sheet(rows: list[tuple[np.ndarray, dict[str, np.ndarray]]]) -> np.ndarray:
  """Draws the sheet.

  Args:
    rows: image uint8 [H, W, 3], and what `augment.MultiCrop` made of it.

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
  """The whole image in a square."""
  fitted = Image.fromarray(image)
  scale = side / max(fitted.size)
  size = [max(round(length * scale), 1) for length in fitted.size]
  canvas = np.full((side, side, 3), WHITE, np.uint8)
  canvas[: size[1], : size[0]] = fitted.resize(size, Image.Resampling.BICUBIC)
  return canvas


def _enlarged(crop, zoom):
  return crop.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _stack(parts, *, axis):
  """Side by side along an axis, white between and where one is smaller."""
  across = max(part.shape[1 - axis] for part in parts)
  padded = []
  for part in parts:
    margins = [[0, 0], [0, 0], [0, 0]]
    margins[axis][1], margins[1 - axis][1] = GAP, across - part.shape[1 - axis]
    padded.append(np.pad(part, margins, constant_values=WHITE))
  return np.concatenate(padded, axis=axis)


def main(_) -> None:
  """Writes the sheet."""
  config = cli.CONFIG.value
  preflight.check(config, devices=None)
  if not IMAGES.value or not OUT.value:
    raise errors.UserError("--images=SOURCE and --out=FILE.png are both needed")
  out = pathlib.Path(OUT.value)
  if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
    raise errors.UserError(f"--out={out} must end in .png or .jpg")
  if COUNT.value < 1:
    raise errors.UserError(f"--count={COUNT.value} must be at least 1")
  source = sources.open_source(IMAGES.value, field="--images")
  multi_crop = augment.make_multi_crop(**config.augment.to_dict())
  rows, count = [], min(COUNT.value, len(source))
  for index in np.linspace(0, len(source) - 1, count, dtype=int):
    rng = np.random.default_rng((config.seed, index))
    crops, _, _ = bad_records.read_or_substitute(
      source,
      int(index),
      make=functools.partial(_with_original, multi_crop, rng),
    )
    rows.append(crops)
  try:
    Image.fromarray(sheet(rows)).save(out)
  except OSError as error:
    raise errors.UserError(f"--out={out} cannot be written: {error}") from error
  console.say(f"{len(rows)} images and their crops are in {out}")


def _with_original(multi_crop, rng, image):
  return images.decode(image), multi_crop(rng, image)


if __name__ == "__main__":
  cli.run(main, on_interrupt="ended; no picture is written")
