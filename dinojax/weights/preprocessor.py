"""Preprocessing of a backbone's images: config of transformers' BitImageProcessor.

A model's folder holds it as preprocessor_config.json, a .safetensors in its metadata.
The sizes are those of a run's evaluation; all else is the same for every backbone.
"""

import logging

import numpy as np

from dinojax import errors
from dinojax.networks import vit
from dinojax.weights import json_objects

LOGGER = logging.getLogger(__name__)
NAME = "preprocessor_config.json"
BICUBIC = 3
LARGEST = 2**13  # pixels to which images are resized


def config_of(sizes: dict[str, int]) -> dict:
  """The config of {"resize", "crop"} in pixels."""
  return {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": sizes["resize"]},
    "resample": BICUBIC,
    "do_center_crop": True,
    "crop_size": {"height": sizes["crop"], "width": sizes["crop"]},
    **_values(),
  }


def sizes_of(config: dict, *, patch_size: int, path: str) -> dict[str, int]:
  """{"resize", "crop"} of a config; {}, and a warning, if it asks for something else.

  Fields that a config lacks have our values.

  Args:
    config: as transformers writes it.
    patch_size: of the network.
    path: of the config, for messages.

  Raises:
    UserError: pixels get other values than ours, which no flag can change.
  """
  for name, wanted in _values().items():
    if not _close(config.get(name, wanted), wanted):
      raise errors.UserError(
        f"{path} has {name}={json_objects.shown(config[name])}, and images here get"
        f" {wanted!r}: features would be wrong; to use the weights all the same, remove"
        " it there, or give the folder's .safetensors alone"
      )
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


def _values() -> dict:
  """How pixels become numbers, as vit.normalize does it."""
  return {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(vit.IMAGENET_MEAN),
    "image_std": list(vit.IMAGENET_STD),
  }


def _close(found, wanted) -> bool:
  try:
    return np.allclose(found, wanted, rtol=1e-5)
  except (TypeError, ValueError, OverflowError):  # no numbers, not as many, too large
    return False
