"""Images of a network's weights: their channels, and weights of RGB for others.

What images are is part of an architecture: mean and deviation of each channel, type of
the values, and the one that means 1.0.

RGB weights start a network of C channels by the patch embedding alone, whose kernels
have a slice for each channel. Two ways are known:

  mean   every channel gets the mean of the three slices, times 3 / C. An image that is
         the same in all channels gives the tokens of a grey image. As timm's
         adapt_input_conv; that repeats red, green and blue in turn, where C is above 3.
  named  red, green and blue keep their slices at the places that are named, and the
         other channels start at zero: the network is at first the very one of RGB.

The mean is the default, since it needs to know nothing of the channels. Where three of
them are red, green and blue, as in satellite images, name them: nothing is lost then.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinojax import channels
from dinojax.networks import vit

FIELDS = (*channels.STATISTICS, "image_dtype", "max_value")


def usual(count: int) -> dict[str, Any]:
  """FIELDS of so many channels, where nothing says them.

  ImageNet's for three; of others, values from 0 to 1 stay as they are.
  """
  mean, std = vit.IMAGENET_MEAN, vit.IMAGENET_STD
  if count != 3:
    mean, std = (0.0,) * count, (1.0,) * count
  return {"mean": mean, "std": std, "image_dtype": "uint8", "max_value": 0.0}


def differing(fields: Mapping[str, Any], known: Mapping[str, Any]) -> str:
  """FIELDS in words if a reader who has `known` would take others; "" if not."""
  by_reader = usual(len(fields["mean"])) | known
  names = [name for name in FIELDS if fields[name] != by_reader[name]]
  names = dict.fromkeys((*channels.STATISTICS, *names)) if names else ()
  return ", ".join(f"{name}={fields[name]}" for name in names)


def fits(name: str, fields: Mapping[str, Any]) -> tuple[bool, str]:
  """Whether one of FIELDS has a value that can be, and what is wanted, in words."""
  value, image_dtype = fields[name], fields["image_dtype"]
  if name == "image_dtype":
    return value in vit.MAX_VALUES, " or ".join(vit.MAX_VALUES)
  if name == "max_value":
    number = type(value) in (int, float) and 0 <= value < math.inf
    return number, "a number, at least 0"
  if image_dtype not in vit.MAX_VALUES:
    image_dtype = "uint8"  # the error is that of the other field
  both = [fields[x] for x in channels.STATISTICS]
  sizes = {len(x) for x in both if isinstance(x, list | tuple)}
  wanted = f"1 to {channels.MOST} numbers, as many of mean as of std"
  wanted += f", each {channels.describe_limits(name, image_dtype)}"
  limits = channels.limits(name, image_dtype)
  return len(sizes) == 1 and channels.are_statistics(value, within=limits), wanted


def in_one_form(fields: Mapping[str, Any]) -> dict[str, Any]:
  """The same with tuples and floats, and max_value=0 where it is the usual one."""
  tuples = {name: tuple(map(float, fields[name])) for name in channels.STATISTICS}
  usual_one = vit.MAX_VALUES[fields["image_dtype"]]
  own = float(fields["max_value"])
  return {**tuples, "max_value": 0.0 if own == usual_one else own}


def adapted(weights: Any, wanted: Mapping[str, Any], *, rgb: Sequence[int]) -> Any:
  """Weights for a network of the wanted images; the same where they are of those.

  Args:
    weights: a `model.Weights`.
    wanted: FIELDS, such as `config.backbone`.
    rgb: the places of red, green and blue among the channels; (): not known.
  """
  own, count = len(weights.backbone["mean"]), len(wanted["mean"])
  stored = ("image_dtype", "max_value")  # which change no weight
  taken = {name: wanted[name] for name in stored}
  if own != 3 or (count == 3 and not rgb):
    backbone = weights.backbone | (taken if own == count else {})
    return dataclasses.replace(weights, backbone=backbone)
  taken = {name: wanted[name] for name in FIELDS}
  embed = weights.params["backbone"]["patch_embed"]
  kernel = np.asarray(embed["kernel"])  # [(p q 3), D]
  slices = kernel.reshape(-1, 3, kernel.shape[-1])
  if rgb:
    made = np.zeros((len(slices), count, kernel.shape[-1]), kernel.dtype)
    made[:, list(rgb)] = slices
  else:
    mean = slices.mean(1, dtype=np.float64, keepdims=True) * (3 / count)
    made = np.repeat(mean.astype(kernel.dtype), count, axis=1)
  embed = {**embed, "kernel": made.reshape(-1, kernel.shape[-1])}
  backbone = {**weights.params["backbone"], "patch_embed": embed}
  return dataclasses.replace(
    weights,
    backbone={**weights.backbone, **taken},
    params={**weights.params, "backbone": backbone},
  )
