"""Preprocessing of a backbone's images: config of transformers' BitImageProcessor.

A model's folder holds it as preprocessor_config.json, a .safetensors in its metadata.
The sizes are those of a run's evaluation, mean and deviation those of its training; all
else is the same for every backbone.
"""

import logging
from typing import Any

import numpy as np

from dinojax import channels as channels_
from dinojax import errors
from dinojax.networks import vit
from dinojax.weights import dinov3, image_fields, json_objects

LOGGER = logging.getLogger(__name__)
NAME = "preprocessor_config.json"
BICUBIC = 3
# Fields of ours, of images that are not uint8.
IMAGE_DTYPE, MAX_VALUE = "dinojax_image_dtype", "dinojax_max_value"
LARGEST = 2**13  # pixels to which images are resized


def config_of(sizes: dict[str, int], backbone: dict) -> dict:
  """The config of {"resize", "crop"} in pixels, and of a network's images."""
  image_dtype = backbone["image_dtype"]
  own = {IMAGE_DTYPE: image_dtype, MAX_VALUE: backbone["max_value"]}
  return {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": len(backbone["mean"]) == 3,
    "do_resize": True,
    "size": {"shortest_edge": sizes["resize"]},
    "resample": BICUBIC,
    "do_center_crop": True,
    "crop_size": {"height": sizes["crop"], "width": sizes["crop"]},
    **_scale(image_dtype, backbone["max_value"]),
    **{f"image_{name}": list(backbone[name]) for name in channels_.STATISTICS},
    **(own if image_dtype != "uint8" else {}),
  }


def _scale(image_dtype: str, max_value: float) -> dict:
  """How pixels become numbers, as vit.normalize does it."""
  factor = 1 / (max_value or vit.MAX_VALUES[image_dtype])
  return {"do_rescale": True, "rescale_factor": factor, "do_normalize": True}


def statistics_of(config: dict, *, path: str, channels: int) -> dict[str, Any]:
  """`image_fields.FIELDS` of a config, the usual ones where it lacks them.

  Args:
    config: as transformers writes it.
    path: of the config, for the error.
    channels: of the network.

  Raises:
    UserError: they are not a number for each channel, or pixels are scaled in another
      way.
  """
  own = {
    "image_dtype": config.get(IMAGE_DTYPE, "uint8"),
    "max_value": config.get(MAX_VALUE, 0.0),
  }
  for name, value in own.items():
    fits, wanted = image_fields.fits(name, own)
    if not fits:
      raise errors.UserError(
        f"{path} has dinojax_{name}={json_objects.shown(value)}; it must be {wanted}"
      )
  image_dtype = own["image_dtype"]
  for name, wanted in _scale(**own).items():
    if not _close(config.get(name, wanted), wanted):
      raise errors.UserError(
        f"{path} has {name}={json_objects.shown(config[name])}, and images here get"
        f" {wanted!r}: features would be wrong; to use the weights all the same, remove"
        " it there, or give the folder's .safetensors alone"
      )
  found = dict(own)
  for name in channels_.STATISTICS:
    others = dinov3.STATISTICS.values() if channels == 3 else ()
    known = [image_fields.usual(channels)[name], *(x[name] for x in others)]
    value = config.get(f"image_{name}", known[0])
    within = channels_.limits(name, image_dtype)
    if not channels_.are_statistics(value, within=within, channels=channels):
      numbers = "three" if channels == 3 else channels
      limits = channels_.describe_limits(name, image_dtype)
      raise errors.UserError(
        f"{path} has image_{name}={json_objects.shown(value)}; it must be {numbers}"
        f" numbers, {limits}, or be left out"
      )
    # Known ones in full, where a file has them in float32.
    found[name] = next((x for x in known if _close(value, x)), tuple(value))
  return found


def sizes_of(config: dict, *, patch_size: int, path: str) -> dict[str, int]:
  """{"resize", "crop"} of a config; {}, and a warning, if it asks for something else.

  Fields that a config lacks have our values.

  Args:
    config: as transformers writes it.
    patch_size: of the network.
    path: of the config, for messages.
  """
  if (resample := config.get("resample", BICUBIC)) != BICUBIC:
    LOGGER.warning(
      "%s has resample=%s; images here are resized bicubically (%d)",
      *(path, json_objects.shown(resample), BICUBIC),
    )
  size, crop = config.get("size"), config.get("crop_size")
  resize = size.get("shortest_edge") if isinstance(size, dict) else size
  sides = [crop.get("height"), crop.get("width")] if isinstance(crop, dict) else [crop]
  steps = [config.get(name, True) for name in ("do_resize", "do_center_crop")]
  if (
    all(steps)
    and all(type(pixels) is int for pixels in (resize, *sides))
    and len(set(sides)) == 1
    and 0 < sides[0] <= resize <= LARGEST
    and sides[0] % patch_size == 0
  ):
    return {"resize": resize, "crop": sides[0]}
  LOGGER.warning(
    "%s has do_resize=%s, size=%s, do_center_crop=%s, crop_size=%s; images here are"
    " resized by their shorter side and cropped at the centre to a square of whole"
    " patches of %d, so it is not followed; --resize and --crop of evaluate and embed"
    " choose",
    *(path, *map(json_objects.shown, (steps[0], size, steps[1], crop)), patch_size),
  )
  return {}


def _close(found, wanted) -> bool:
  try:
    return np.allclose(found, wanted, rtol=1e-5)
  except (TypeError, ValueError, OverflowError):  # no numbers, not as many, too large
    return False
