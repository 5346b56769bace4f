"""Flag of the commands that read images as they lie: how large one may be."""

from absl import flags

from dinojax.data import images


def define_max_pixels() -> flags.FlagHolder[int]:
  """Defines --max_pixels, once in a process; ingest has another flag of this name."""
  if "max_pixels" in flags.FLAGS:
    return flags.FlagHolder(flags.FLAGS, flags.FLAGS["max_pixels"])
  return flags.DEFINE_integer(
    "max_pixels",
    images.MAX_PIXELS,
    "Larger images are corrupt; a JPEG may have 4 times as many pixels.",
    lower_bound=1,
  )
