"""Multi-crop: one image in, two global and several local augmented crops out.

First the positions of all crops are drawn (geometry.py), since they decide how small
the image can be decoded (images.py), and their colours and blur. Then each crop is one
warp from the decoded image (resample.py) and two passes for blur and colour
(photometric.py), on the host, in the values that are stored: uint8 RGB, or of another
layout (layouts.py). The device normalizes. All randomness comes from the argument
`rng`: the same generator state and bytes give the same crops.

Source: DINOv2 (arXiv:2304.07193) and the torchvision transforms it is built from.

Shapes: image [H,W,C], global crop [S,S,C], each of L local crops [s,s,C].
"""

import dataclasses
import functools
import math
from collections.abc import Iterable

import cv2
import numpy as np

from dinojax import channels as channel_fields
from dinojax.data import geometry, images, layouts, photometric, resample

# A JPEG is decoded at a fraction of its size if that leaves so many of its pixels for
# each pixel of a crop, along an axis.
MIN_SCALE = 1.65


@dataclasses.dataclass(frozen=True)
class Crop:
  """How one kind of crop is made."""

  size: int
  area: tuple[float, float]  # range of the box's share of the image
  aspect: tuple[float, float]  # range of the box's width / height
  geometry: geometry.Geometry
  flip_prob: float
  jitter: photometric.Jitter
  grey_prob: float
  blur: photometric.Blur
  solarize_prob: float


@dataclasses.dataclass(frozen=True)
class MultiCrop:
  """All the crops of a training image; picklable, for the input worker processes."""

  global1: Crop
  global2: Crop
  local: Crop
  num_local: int
  gram_size: int = 0  # of the global crops as a Gram teacher sees them; 0: not at all
  max_pixels: int = images.MAX_PIXELS  # of an image, see `images.decode`
  layout: layouts.Layout = layouts.RGB

  @functools.cached_property
  def kinds(self) -> list[Crop]:
    """The kind of each crop of an image, in the order of the results."""
    return [self.global1, self.global2] + [self.local] * self.num_local

  @functools.cached_property
  def ranges(self) -> photometric.Ranges:
    """The ranges of their colours and blur."""
    return photometric.Ranges(self.kinds)

  def sample_warps(
    self, rng: np.random.Generator, height: int, width: int
  ) -> list[np.ndarray]:
    """Where the crops of an image lie: the first that is drawn for them.

    With an equal generator these are the warps of `__call__`, in the order of `kinds`.

    Args:
      rng: the only source of randomness.
      height: pixels of the upright image.
      width: likewise.

    Returns:
      [3, 3] each, see `geometry.sample_warp`.
    """
    return [sample_warp(rng, height, width, kind) for kind in self.kinds]

  def __call__(
    self, rng: np.random.Generator, image: bytes | np.ndarray
  ) -> dict[str, np.ndarray]:
    """Makes the crops of one image.

    Args:
      rng: the only source of randomness.
      image: an encoded image, or [H,W,C].

    Returns:
      {"global_crops": [2,S,S,C], "local_crops": [L,s,s,C]} of the layout's type, and
      with `gram_size` "gram_crops": the global ones in that size, neither blurred nor
      changed in colour.

    Raises:
      ValueError: the image cannot be decoded, see `images.decode`.
    """
    cv2.setNumThreads(0)  # The input worker processes already fill the cores.
    probed = images.probe(image, self.layout)
    kinds = self.kinds
    warps = self.sample_warps(rng, probed.height, probed.width)
    appearances = photometric.sample_appearances(rng, self.ranges)
    sizes = [kind.size for kind in kinds]
    if side := self.gram_size:
      shrink = np.diag([self.global1.size / side, self.global1.size / side, 1])
      plain = photometric.Appearance(sigma=0.0, factors=None, solarize=False)
      kinds, sizes = kinds + kinds[:2], sizes + [side] * 2
      warps += [warp @ shrink for warp in warps[:2]]
      appearances += [plain] * 2
    scales = map(geometry.scale, warps, sizes)
    pixels, halved = probed.decode(
      halvings(scales), alpha=True, max_pixels=self.max_pixels
    )
    channels, dtype = self.layout
    levels = resample.levels(pixels, halved, channels)
    crops = {
      name: np.empty((count, side, side, channels), dtype)
      for name, count, side in (
        ("global_crops", 2, self.global1.size),
        ("local_crops", self.num_local, self.local.size),
        ("gram_crops", 2, self.gram_size),
      )
      if side
    }
    outs = [out for of_kind in crops.values() for out in of_kind]
    for kind, size, warp, appearance, out in zip(
      kinds, sizes, warps, appearances, outs, strict=True
    ):
      kernel = kind.blur.kernel
      for part, level in levels:
        pixels, variance = resample.warp_crop(level, warp, size, appearance.sigma)
        photometric.apply(
          *(pixels, appearance),
          **dict(variance=variance, kernel=kernel, out=out[..., part]),
          rgb=channels == 3,
        )
    return crops


def sample_warp(
  rng: np.random.Generator, height: int, width: int, crop: Crop
) -> np.ndarray:
  """`geometry.sample_warp` of one kind of crop."""
  return geometry.sample_warp(
    rng,
    height,
    width,
    size=crop.size,
    area=crop.area,
    aspect=crop.aspect,
    flip_prob=crop.flip_prob,
    geometry=crop.geometry,
  )


def halvings(scales: Iterable[float]) -> int:
  """Returns how often an image can be halved when it is decoded.

  Args:
    scales: those of its crops, see `geometry.scale`.
  """
  return max(0, math.floor(math.log2(min(scales) / MIN_SCALE)))


def make_multi_crop(
  *,
  global1,
  global2,
  local,
  num_local,
  gram_size=0,
  max_pixels=images.MAX_PIXELS,
  layout=layouts.RGB,
) -> MultiCrop:
  """Builds the `MultiCrop` of `config.augment`, which preflight.py has checked.

  Args:
    global1: mapping with the fields of `Crop`; also `global2` and `local`.
    global2: as `global1`, and of the same size.
    local: as `global1`.
    num_local: L.
    gram_size: `config.gram.crop_size`.
    max_pixels: `config.data.max_pixels`.
    layout: of the images, which may turn some colours off.

  Raises:
    TypeError: a field is unknown or missing.
  """
  crops, off = {}, channel_fields.colours_off(*layout)
  for name, group in (("global1", global1), ("global2", global2), ("local", local)):
    jitter = {k: 0.0 if f"jitter.{k}" in off else x for k, x in group["jitter"].items()}
    parts = {
      "geometry": geometry.Geometry(**group["geometry"]),
      "jitter": photometric.Jitter(**jitter),
      "blur": photometric.Blur(**group["blur"]),
      **{field: 0.0 for field in off if field in group},
    }
    crops[name] = Crop(**{**group, **parts})
  more = dict(num_local=num_local, gram_size=gram_size, max_pixels=max_pixels)
  more["layout"] = layout
  return MultiCrop(**crops, **more)
