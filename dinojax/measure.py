r"""Measures images that are not RGB: what a config has to say of their channels.

  python -m dinojax.measure --images=folder:/data/eurosat --max_value=10000

Prints, for each channel, the least and largest value, mean and deviation, and then the
options of dinojax.main, which are fields of a config, for such images. The type of the
values, "uint8" or "uint16", is that of the first image that can be read; all other
numbers become "float32". --count images are read, evenly spaced over the source.
"""

import math

import numpy as np
from absl import flags

from dinojax import channels, errors
from dinojax.commands import cli, image_flags
from dinojax.data import layouts, moments, sources
from dinojax.networks import vit

IMAGES = flags.DEFINE_string("images", None, f"Source of images: {sources.USAGE}.")
COUNT = flags.DEFINE_integer("count", 2_000, "Number of images.", lower_bound=1)
MAX_VALUE = flags.DEFINE_float(
  "max_value",
  0.0,
  "Value that means 1; 0: 255 of uint8, 65535 of uint16, and 1 of float32.",
  lower_bound=0.0,
)
MAX_PIXELS = image_flags.define_max_pixels()
flags.declare_key_flag(MAX_PIXELS.name)
DIGITS = 6  # significant ones of what is printed


def options(
  layout: layouts.Layout, found: moments.Moments, max_value: float
) -> list[str]:
  """Options of dinojax.main for images of a layout."""
  one = max_value or vit.MAX_VALUES[layout.dtype]
  statistics = {"mean": found.mean / one, "std": np.sqrt(found.variance) / one}
  lines = [f"--config.data.channels={layout.channels}"]
  lines += [f"--config.backbone.image_dtype={layout.dtype}"]
  lines += [f"--config.backbone.max_value={max_value:g}"] if max_value else []
  for name, values in statistics.items():
    least = channels.limits(name, layout.dtype)[0]
    numbers = ", ".join(f"{max(x, least):.{DIGITS}g}" for x in values)
    comma = "," if len(values) == 1 else ""
    lines.append(f"--config.backbone.{name}='({numbers}{comma})'")
  return lines


def main(_) -> None:
  """Measures, and prints."""
  if not IMAGES.value:
    raise errors.UserError("--images=SOURCE is missing; try folder:PATH")
  if not math.isfinite(MAX_VALUE.value):
    raise errors.UserError(f"--max_value={MAX_VALUE.value} must be finite")
  source = sources.open_source(IMAGES.value, field="--images")
  how = dict(count=COUNT.value, max_pixels=MAX_PIXELS.value)
  layout, found, readable = moments.measure(source, **how)
  if layout.dtype == "uint8" and MAX_VALUE.value not in (0, 255):
    raise errors.UserError(
      f"--max_value={MAX_VALUE.value:g} must be left out: the images are uint8, whose"
      " value of 1 is 255"
    )
  plural = "s" * (layout.channels > 1)
  print(
    f"{readable:,} of {len(source):,} images of {IMAGES.value}: {layout.channels}"
    f" channel{plural} of {layout.dtype}"
  )
  print(f"{'channel':>7}{'least':>14}{'mean':>14}{'deviation':>14}{'largest':>14}")
  deviation = np.sqrt(found.variance)
  columns = zip(found.least, found.mean, deviation, found.most, strict=True)
  for i, row in enumerate(columns):
    print(f"{i:>7}" + "".join(f"{x:>14.{DIGITS}g}" for x in row))
  print("\n".join(options(layout, found, MAX_VALUE.value)))


if __name__ == "__main__":
  cli.run(main, on_interrupt="interrupted", config=False)
