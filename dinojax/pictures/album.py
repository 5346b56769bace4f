"""Album: a source's images as a teacher sees them, in arrays from which all is drawn.

Some images at a high resolution, for maps of patches; many at that of evaluation, for
neighbours, the map of images and prototypes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import cv2
import jax
import numpy as np
import tqdm

from dinojax import errors
from dinojax.data import arrays, images, layouts, sources
from dinojax.networks import vit
from dinojax.pictures import (
  components,
  crops,
  prototypes,
  samples,
  sections,
  similarity,
  tokens,
)

QUERIES, NEIGHBOURS = 8, 7  # rows of the gallery, and images beside each query
PROTOTYPES, TAKEN = 8, 8  # prototypes shown, and what each takes
MOST_CLASSES = 1_000  # that have numbers alone; larger ones identify something else
CELL = 112  # pixels of a side of the gallery's images, unless theirs are smaller


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A frozen network.

  module: with its weights `params`. heads: of `prototypes.open_heads`. sizes:
  {"resize", "crop"}, pixels that its images are meant to have. devices: whose multiple
  a batch has to be.
  """

  module: vit.VisionTransformer
  params: Any
  heads: dict[str, prototypes.Head]
  sizes: dict[str, int]
  devices: int


@dataclasses.dataclass(frozen=True)
class Patches:
  """Images at a high resolution: [I, S, S, 3], and `tokens.Tokens` of them.

  grid: patches along a side. names: of the images.
  """

  images: np.ndarray
  names: list[str]
  grid: int
  tokens: np.ndarray
  attention: np.ndarray


@dataclasses.dataclass(frozen=True)
class Many:
  """Many images: features [M, D], thumbnails [M, t, t, 3], labels [M], and records.

  source: numbered by `records`, int [M]; names: of the images.
  """

  source: samples.Chosen
  records: np.ndarray
  features: np.ndarray
  thumbs: np.ndarray
  labels: np.ndarray
  names: list[str]

  @property
  def classes(self) -> tuple[str, ...]:
    """Names of the classes by label; numbers of few, () of none or of many."""
    if self.source.class_names:
      return self.source.class_names
    highest = int(self.labels.max(initial=-1))
    return tuple(map(str, range(highest + 1))) if highest < MOST_CLASSES else ()


@dataclasses.dataclass(frozen=True)
class Album:
  """What `collect` has computed.

  taken: of "images" and of "patches" by prototypes; {} without heads. cells: by number
  of an image of `many`, its pixels for the gallery and the prototypes. cropped: crops
  of training; [] where no config is known.
  """

  patches: Patches
  many: Many
  pool: str
  queries: np.ndarray
  neighbours: tuple[np.ndarray, np.ndarray]
  taken: dict[str, prototypes.Taken]
  cells: dict[int, np.ndarray]
  cropped: list[crops.Cropped] = dataclasses.field(default_factory=list)


def collect(
  teacher: Teacher,
  source: sources.Source,
  *,
  count: int,
  at_most: int,
  batch_size: int,
  workers: int,
  max_pixels: int = images.MAX_PIXELS,
  progress: Callable[[], None] = lambda: None,
) -> Album:
  """Computes what pictures show. Of several processes all call it at one time.

  Args:
    teacher: the network.
    source: of images, perhaps labelled.
    count: images for maps of patches.
    at_most: images for the gallery, the map and the prototypes, evenly spaced.
    batch_size: images of a batch at the resolution of evaluation; rounded up to the
      devices.
    workers: processes that decode.
    max_pixels: larger images are corrupt.
    progress: called after every batch.

  Raises:
    UserError: no image is readable, or a feature is not finite.
  """
  layout = layouts.of(teacher.module)
  reading = dict(workers=workers, max_pixels=max_pixels, layout=layout)
  patches = _patches(teacher, samples.evenly(source, count), reading)
  progress()
  chosen = samples.evenly(source, at_most)
  many = _many(teacher, chosen, batch_size, reading, progress)
  queries = np.unique(np.linspace(0, len(many.labels) - 1, QUERIES).round().astype(int))
  neighbours = similarity.nearest(many.features, queries, NEIGHBOURS)
  taken = {}
  for name, head, rows in (
    ("images", "dino", many.features),
    ("patches", "ibot", patches.tokens.reshape(-1, patches.tokens.shape[-1])),
  ):
    if head in teacher.heads:
      taken[name] = prototypes.most_taken(
        teacher.heads[head],
        rows,
        shown=PROTOTYPES,
        count=TAKEN,
        devices=teacher.devices,
      )
  wanted = [queries, neighbours[0].ravel()]
  wanted += [taken["images"].rows.ravel()] if taken else []
  return Album(
    patches=patches,
    many=many,
    pool=teacher.module.pool,
    queries=queries,
    neighbours=neighbours,
    taken=taken,
    cells=_cells(many, np.unique(np.concatenate(wanted)), teacher.sizes, reading),
  )


def _padded(count: int, devices: int) -> int:
  return -(-count // devices) * devices


def _patches(teacher: Teacher, chosen: samples.Chosen, reading: dict) -> Patches:
  """Patch tokens of some images at a high resolution, a few images at a time."""
  usual = teacher.sizes
  grid = tokens.grid(teacher.module, usual["crop"])
  crop = grid * teacher.module.patch_size
  sizes = dict(crop=crop, resize=round(crop * usual["resize"] / usual["crop"]))
  found = {name: [] for name in ("images", "tokens", "attention", "names")}
  for batch in samples.shared_batches(
    chosen, batch_size=_padded(1, teacher.devices), **sizes, **reading
  ):
    seen = tokens.compute(teacher.module, teacher.params, batch["image"])
    valid = batch["valid"]
    found["images"] += [arrays.shown(image)[None] for image in batch["image"][valid]]
    found["tokens"].append(np.asarray(seen.patches)[valid])
    found["attention"].append(np.asarray(seen.attention)[valid])
    found["names"] += [
      samples.short_name(chosen, i) for i in batch["index"][valid].tolist()
    ]
  if not found["names"]:
    raise _unreadable(chosen)
  joined = {k: np.concatenate(x) for k, x in found.items() if k != "names"}
  components.check_finite(joined["tokens"], f"{chosen.where}: patch tokens of images")
  return Patches(grid=grid, names=found["names"], **joined)


def _unreadable(chosen: samples.Chosen) -> errors.UserError:
  return errors.UserError(
    f"{chosen.where}: none of {len(chosen)} images is readable; the warnings before say"
    " why"
  )


def _many(
  teacher: Teacher, chosen: samples.Chosen, batch_size: int, reading: dict, progress
) -> Many:
  """Features and thumbnails of many images at the resolution of evaluation."""
  side = min(sections.thumb_side(len(chosen)), teacher.sizes["crop"])
  found = {name: [] for name in ("features", "thumbs", "labels", "records")}
  size = _padded(min(batch_size, len(chosen)), teacher.devices)
  batches = samples.shared_batches(chosen, batch_size=size, **teacher.sizes, **reading)
  for batch in tqdm.tqdm(
    batches,
    desc="features for pictures",
    total=-(-len(chosen) // size),
    leave=False,
    disable=None if jax.process_index() == 0 else True,  # None: unless no terminal
  ):
    seen = tokens.image_features(teacher.module, teacher.params, batch["image"])
    valid = batch["valid"]
    found["features"].append(np.asarray(seen)[valid])
    found["labels"].append(batch["label"][valid])
    found["records"].append(batch["index"][valid])
    found["thumbs"] += [
      cv2.resize(arrays.shown(image), (side, side), interpolation=cv2.INTER_AREA)
      for image in batch["image"][valid]
    ]
    progress()
  if not found["thumbs"]:
    raise _unreadable(chosen)
  thumbs = np.stack(found.pop("thumbs"))
  joined = {name: np.concatenate(parts) for name, parts in found.items()}
  components.check_finite(joined["features"], f"{chosen.where}: image features")
  names = [samples.short_name(chosen, i) for i in joined["records"].tolist()]
  return Many(chosen, thumbs=thumbs, names=names, **joined)


def _cells(
  many: Many, numbers: np.ndarray, sizes: dict, reading: dict
) -> dict[int, np.ndarray]:
  """Pixels of some of many images, larger than thumbnails; on process 0 alone."""
  if jax.process_index() != 0:
    return {}
  crop = min(CELL, sizes["crop"])
  resize = max(round(crop * sizes["resize"] / sizes["crop"]), crop)
  some = samples.Chosen(many.source, tuple(many.records[numbers].tolist()))
  found = {}
  for batch in samples.batches(
    some, batch_size=len(numbers), crop=crop, resize=resize, **reading
  ):
    pairs = zip(batch["index"].tolist(), batch["image"], strict=True)
    found |= {int(numbers[i]): arrays.shown(image) for i, image in pairs}
  return found
