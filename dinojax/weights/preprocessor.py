"""Preprocessing of a backbone's images: config of transformers' BitImageProcessor.

A model's folder holds it as preprocessor_config.json, a .safetensors in its metadata.
The sizes are those of a run's evaluation, mean and deviation those of its training; all
else is the same for every backbone.
"""

import logging

import numpy as np

from dinojax import config_fields, errors
from dinojax.weights import dinov3, json_objects, model

LOGGER = logging.getLogger(__name__)
NAME = "preprocessor_config.json"
BICUBIC = 3
# How pixels become numbers, as vit.normalize does it.
SCALE = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
LARGEST = 2**13  # pixels to which images are resized


def config_of(sizes: dict[str, int], backbone: dict) -> dict:
  """The config of {"resize", "crop"} in pixels, and of a network's mean and std."""
  return {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": sizes["resize"]},
    "resample": BICUBIC,
    "do_center_crop": True,
    "crop_size": {"height": sizes["crop"], "width": sizes["crop"]},
    **SCALE,
    **{f"image_{name}": list(backbone[name]) for name in model.CHANNELS},
  }


def statistics_of(config: dict, *, path: str) -> dict[str, tuple]:
  """{"mean", "std"} of a config, ImageNet's where it lacks them.

  Args:
    config: as transformers writes it.
    path: of the config, for the error.

  Raises:
    UserError: they are not three numbers, or pixels are scaled in another way.
  """
  for name, wanted in SCALE.items():
    if not _close(config.get(name, wanted), wanted):
      raise errors.UserError(
        f"{path} has {name}={json_objects.shown(config[name])}, and images here get"
        f" {wanted!r}: features would be wrong; to use the weights all the same, remove"
        " it there, or give the folder's .safetensors alone"
      )
  found = {}
  for name, least in model.CHANNELS.items():
    known = [model.DEFAULTS[name], *(x[name] for x in dinov3.STATISTICS.values())]
    value = config.get(f"image_{name}", known[0])
    if not config_fields.is_of_channels(value, least=least):
      raise errors.UserError(
        f"{path} has image_{name}={json_objects.shown(value)}; it must be three numbers"
        f" from {least} to 1, or be left out"
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
