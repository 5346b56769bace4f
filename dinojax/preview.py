"""Preview of the augmentations: a picture of images and the crops made of them.

  python -m dinojax.preview --config=experiments/vits14.py \
    --images=folder:/data/photos --out=preview.png

A row is one image with the outlines of its crops, then its global crops with the
patches that are hidden from the student, then its local crops. Crops of one kind have
one size. --out=preview.html is the same as a page that opens from disk. To try other
augmentations, override fields of the config as in training, for example by
--config.augment.local.area='(0.1, 0.4)'. No accelerator is used: a preview can be made
while a run trains.
"""

import pathlib
import sys

import numpy as np
from absl import flags
from PIL import Image

from dinojax import channels, durable, errors, preflight
from dinojax.commands import cli
from dinojax.data import bad_records, sources
from dinojax.pages import markup, page, panels
from dinojax.pictures import crops, samples, tables

flags.declare_key_flag("config")  # so that --help shows it
IMAGES = flags.DEFINE_string(
  "images",
  None,
  f"Source of images: {sources.USAGE}.",
)
OUT = flags.DEFINE_string(
  "out", None, "Picture to write, .png or .jpg, or page, .html."
)
COUNT = flags.DEFINE_integer(
  "count", 8, "Number of images, evenly spaced over the source."
)
ENDINGS = (".png", ".jpg", ".jpeg", ".html")
MAX_COUNT = 200  # a JPEG has at most 65,535 rows
CELL = 224  # pixels of a cell


def main(_) -> None:
  """Writes the picture."""
  config = cli.CONFIG.value
  preflight.check(config, devices=None)
  for line in channels.doubts(config):
    print(f"warning: {line}", file=sys.stderr)
  if not IMAGES.value:
    raise errors.UserError("--images=SOURCE is missing; try folder:PATH")
  if not OUT.value:
    raise errors.UserError("--out=FILE is missing; try preview.png")
  out = pathlib.Path(OUT.value).expanduser()
  if out.suffix.lower() not in ENDINGS:
    raise errors.UserError(f"--out={out} must end in .png, .jpg or .html")
  if not 1 <= COUNT.value <= MAX_COUNT:
    raise errors.UserError(f"--count={COUNT.value} must be within 1 and {MAX_COUNT}")
  durable.check_file(OUT.value, flag="--out", example="preview.png")
  source = sources.open_source(IMAGES.value, field="--images")
  count = min(COUNT.value, len(source))

  def read(index, make):
    row, _, reason = bad_records.read_or_substitute(source, index, make=make)
    if reason:
      name = source.name(index)
      print(f"corrupt image substituted: {name}: {reason}", file=sys.stderr)
    return row

  records = np.linspace(0, len(source) - 1, count, dtype=int).tolist()
  cropped = crops.of_config(read, records, config)
  names = [samples.short_name(source, index) for index in records]
  table = crops.table(cropped, names)
  try:
    if out.suffix.lower() == ".html":
      title = f"Crops of {IMAGES.value}"
      parts = [panels.fragment([tables.section(table)])]
      head = page.Fragment(markup.tag("h1", title))
      out.write_bytes(page.encode(page.render(title, [head, *parts])))
    else:
      Image.fromarray(tables.sheet(table, side=CELL)).save(out)
  except OSError as error:
    raise errors.UserError(f"--out={out} cannot be written: {error}") from error
  print(f"{out}: {len(cropped)} images and their crops")


if __name__ == "__main__":
  cli.run(main, on_interrupt="interrupted; no picture is written")
