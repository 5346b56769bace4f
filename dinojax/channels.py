"""Channels of images: what a config may say of images that are not 8-bit RGB.

`config.data.channels` of `config.backbone.image_dtype`, each with a mean and deviation.
Means and deviations are of values divided by the one that means 1.0,
`config.backbone.max_value`: 0 is 255 of uint8, 65,535 of uint16, and 1 of float32.
"""

import math

from dinojax import errors

MOST = 16
STATISTICS = ("mean", "std")
# The least mean and deviation by type; 1 is the most where there is a least mean.
LEAST = {"uint8": (0.0, 0.001), "uint16": (0.0, 1e-6), "float32": (-math.inf, 1e-6)}
# Fields of a kind of crop that change colours.
COLOURS = ("jitter.saturation", "jitter.hue", "grey_prob", "solarize_prob")


def limits(name: str, image_dtype: str) -> tuple[float, float]:
  """The least and the most of "mean" or "std" of a channel."""
  least = LEAST[image_dtype]
  return least[STATISTICS.index(name)], math.inf if least[0] < 0 else 1


def are_statistics(
  value, *, within: tuple[float, float], channels: int | None = None
) -> bool:
  """Whether a value is one finite number within limits for each channel.

  channels: how many; None: any number that images may have.
  """
  low, high = within
  return (
    isinstance(value, list | tuple)
    and len(value) in ([channels] if channels else range(1, MOST + 1))
    and all(
      isinstance(x, int | float) and math.isfinite(x) and low <= x <= high
      for x in value
    )
  )


def describe_limits(name: str, image_dtype: str) -> str:
  """The limits in words."""
  low, high = limits(name, image_dtype)
  if math.isfinite(high):
    return f"{low:g} to {high}" if low else f"{low} to {high}"
  return f"finite, at least {low:g}" if math.isfinite(low) else "finite"


def check(config) -> None:
  """Raises UserError for what a config says of its images that cannot be."""
  channels, image_dtype = config.data.channels, config.backbone.image_dtype
  if type(channels) is not int or not 1 <= channels <= MOST:
    raise errors.UserError(
      f"config.data.channels={channels} must be a whole number from 1 to {MOST}"
    )
  for name in STATISTICS:
    value, within = config.backbone[name], limits(name, image_dtype)
    if not are_statistics(value, within=within, channels=channels):
      numbers, more = "three numbers", ""
      if channels != 3:
        numbers = f"{channels} number{'s' * (channels > 1)}"
        more = (
          f", one for each of config.data.channels={channels}; python -m"
          " dinojax.measure --images=SOURCE prints them"
        )
      raise errors.UserError(
        f"config.backbone.{name}={value} must be {numbers},"
        f" {describe_limits(name, image_dtype)}{more}"
      )
  most = config.backbone.max_value
  if image_dtype == "uint8" and most not in (0, 255):
    raise errors.UserError(
      f"config.backbone.max_value={most} must be 0 or 255 with"
      " config.backbone.image_dtype=uint8"
    )
  if not math.isfinite(most):
    raise errors.UserError(f"config.backbone.max_value={most} must be finite, 0: usual")
  _check_rgb(config.init, channels)
  if config.distill.teacher:
    _check_teacher(config)


def _check_rgb(init, channels) -> None:
  places = tuple(init.rgb)
  if not places:
    return
  whole = all(type(x) is int and 0 <= x < channels for x in places)
  if len(set(places)) != 3 or len(places) != 3 or not whole or not init.backbone:
    raise errors.UserError(
      f"config.init.rgb={places} must be (), or the places of red, green and blue among"
      f" config.data.channels={channels}, from 0, with a config.init.backbone"
    )


def _check_teacher(config) -> None:
  """The crops of a distillation are the same for its teacher."""
  own, teacher = config.backbone, config.distill.backbone
  for name in ("image_dtype", "max_value"):
    if own[name] != teacher[name]:
      raise errors.UserError(
        f"config.distill.backbone.{name}={teacher[name]} must be"
        f" config.backbone.{name}={own[name]}: both see the same crops"
      )
  if len(teacher.mean) != len(own.mean):
    raise errors.UserError(
      f"config.distill.backbone.mean={tuple(teacher.mean)} is of {len(teacher.mean)}"
      f" channels, and config.data.channels={len(own.mean)}: both see the same crops"
    )


def colours_off(channels: int, image_dtype: str) -> tuple[str, ...]:
  """Those of COLOURS that are off: all but for RGB, and solarizing but for 8 bits."""
  if channels != 3:
    return COLOURS
  return () if image_dtype == "uint8" else ("solarize_prob",)


def doubts(config) -> list[str]:
  """A line if the config asks for colours that its images do not have."""
  channels, image_dtype = config.data.channels, config.backbone.image_dtype
  kinds = [config.augment[kind] for kind in ("global1", "global2", "local")]
  off = colours_off(channels, image_dtype)
  asked = [name for name in off if any(_field(kind, name) for kind in kinds)]
  if not asked:
    return []
  return [
    f"{', '.join(asked)} of config.augment are off: they need 8-bit RGB, and images"
    f" have {channels} channel{'s' * (channels > 1)} of {image_dtype}"
  ]


def _field(group, path):
  for name in path.split("."):
    group = group[name]
  return group
