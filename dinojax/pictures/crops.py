"""Crops of training, with the masks and where each of them lies in its image."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from dinojax.data import arrays, augment, geometry, images, layouts, masking
from dinojax.pictures import drawing, tables

SHOWN = 320  # pixels of the longer side of an image with outlines


@dataclasses.dataclass(frozen=True)
class Cropped:
  """An image and its crops, as pictures for people: see `arrays.shown`.

  image: uint8 [H, W, 3], upright. corners: [2 + L, 4, 2], outline of each crop in the
  image, global crops first. global_crops: uint8 [2, S, S, 3]. local_crops: uint8
  [L, s, s, 3]. mask: bool [2, h, w], True where the student does not see a patch.
  """

  image: np.ndarray
  corners: np.ndarray
  global_crops: np.ndarray
  local_crops: np.ndarray
  mask: np.ndarray

  def outlined(self) -> np.ndarray:
    """The image with the outlines of its crops, in the colours of `drawing`."""
    shown = drawing.fitted(self.image, SHOWN)
    scale = np.array(shown.shape[1::-1]) / self.image.shape[1::-1]
    locals_first = [*self.corners[2:], *self.corners[:2]]
    colours = [drawing.LOCAL] * (len(self.corners) - 2) + list(drawing.GLOBALS)
    return drawing.outlined(shown, [x * scale for x in locals_first], colours, width=2)

  def masked_crops(self) -> list[np.ndarray]:
    """The global crops with their masked patches hatched."""
    pairs = zip(self.global_crops, self.mask, strict=True)
    return [drawing.hidden(crop, mask) for crop, mask in pairs]


def make(
  multi_crop: augment.MultiCrop,
  image: bytes | np.ndarray,
  *,
  seed: tuple[int, ...],
  mask: np.ndarray,
) -> Cropped:
  """Crops an image as the network would see it.

  Args:
    multi_crop: of the run's config.
    image: as its source stores it.
    seed: of the crops; an equal one gives equal crops.
    mask: bool [2, N], of `masks`.

  Raises:
    ValueError: the image cannot be decoded.
  """
  layout = multi_crop.layout
  stored = images.decode(image, max_pixels=multi_crop.max_pixels, layout=layout)
  shown = arrays.shown(stored)
  crops = multi_crop(np.random.default_rng(seed), image)
  crops = {name: arrays.shown(x, like=stored) for name, x in crops.items()}
  probed = images.probe(image, layout)
  warps = multi_crop.sample_warps(
    np.random.default_rng(seed), probed.height, probed.width
  )
  corners = [
    geometry.corners(warp, kind.size)
    for warp, kind in zip(warps, multi_crop.kinds, strict=True)
  ]
  # A huge JPEG is decoded at a fraction of its size.
  scale = np.array(shown.shape[1::-1]) / (probed.width, probed.height)
  side = round(mask.shape[1] ** 0.5)
  return Cropped(
    image=shown,
    corners=np.stack(corners) * scale,
    mask=mask.reshape(2, side, side),
    **crops,
  )


def masks(
  count: int, *, seed: int, group_size: int, grid: int, masking_fields: dict
) -> np.ndarray:
  """Masks of so many images, bool [count, 2, N], drawn by groups as in training."""
  drawn = [
    masking.block_masks(
      np.random.default_rng((seed, group)),
      group_size=group_size,
      views=2,
      grid=grid,
      **masking_fields,
    )["mask"]
    for group in range(-(-count // group_size))
  ]
  return np.concatenate(drawn)[:count]


def of_config(
  read: Callable[[int, Callable], Cropped], records: Sequence[int], config
) -> list[Cropped]:
  """The crops of some records, as a run of a config makes them.

  Args:
    read: (record, function of an image as stored) -> what the function makes of that
      record, or of a substitute.
    records: their numbers.
    config: of the run, checked; seed, group_size, backbone, augment, masking and data
      are read.
  """
  multi_crop = augment.make_multi_crop(
    **config.augment.to_dict(),
    max_pixels=config.data.max_pixels,
    layout=layouts.of(config.backbone),
  )
  hidden = masks(
    len(records),
    seed=config.seed,
    group_size=config.group_size,
    grid=config.augment.global1.size // config.backbone.patch_size,
    masking_fields=config.masking.to_dict(),
  )
  if config.distill.teacher:  # whose students see whole crops
    hidden = np.zeros_like(hidden)
  return [
    read(
      record,
      functools.partial(make, multi_crop, seed=(config.seed, record), mask=mask),
    )
    for record, mask in zip(records, hidden, strict=True)
  ]


def table(cropped: Sequence[Cropped], names: Sequence[str] = ()) -> tables.Table:
  """The multi-crop: images with the outlines of their crops, and the crops.

  Args:
    cropped: images and their crops, at least one.
    names: of the images; () for none.
  """
  rows, count = [], len(cropped[0].local_crops)
  for some, name in zip(cropped, names or [""] * len(cropped), strict=True):
    height, width = some.image.shape[:2]
    row = [tables.Cell(some.outlined(), f"{name} {width}x{height}".strip())]
    row += [
      tables.Cell(crop, f"{mask.mean():.0%} masked" if mask.any() else "unmasked")
      for crop, mask in zip(some.masked_crops(), some.mask, strict=True)
    ]
    rows.append(row + [tables.Cell(crop) for crop in some.local_crops])
  sides = [x.shape[1] for x in (cropped[0].global_crops, cropped[0].local_crops)]
  heads = ["image", *(f"global {i}, {sides[0]} px" for i in (1, 2))]
  heads += [f"local {i + 1}, {sides[1]} px" for i in range(count)]
  return tables.Table(
    "crops",
    "Multi-crop",
    "What the network is trained on. Lines on the image show where each crop lies:"
    " global 1 orange, global 2 blue, local crops green. The student does not see the"
    " hatched patches, the teacher does.",
    tuple(heads),
    rows,
  )
