"""Teachers: frozen networks of any weights, with the heads and the config of a run."""

import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections

from dinojax import backbone, config_fields
from dinojax.data import bad_records, images, sources
from dinojax.pictures import album, crops, prototypes, samples
from dinojax.weights import formats, runs

PARTS = ("backbone", "dino_head", "ibot_head")


class Origin(NamedTuple):
  """Step and config of the run that made weights; None of other weights."""

  step: int | None = None
  config: dict[str, Any] | None = None

  @property
  def step_text(self) -> str:
    """Words that follow the name of the weights: ", step 3,000", or nothing."""
    return "" if self.step is None else f", step {self.step:,}"


def load(
  path: str,
  *,
  step: int | None = None,
  heads: int | None = None,
  pool: str | None = None,
  dtype: str = "float32",
  resize: int | None = None,
  crop: int | None = None,
) -> tuple[album.Teacher, Origin]:
  """A teacher from weights of any format, on one device, and where they come from.

  Args:
    path: as step, heads, pool and dtype of `backbone.load`.
    step: of a run; None: its newest checkpoint.
    heads: attention heads, if the file does not store them.
    pool: image feature; None: that of the weights.
    dtype: of matrix products.
    resize: as crop of `Backbone.image_sizes`.
    crop: pixels of a side of the images; None: as the weights say.

  Raises:
    UserError: they cannot be read, or do not fit.
  """
  where = pathlib.Path(path).expanduser()
  run = runs.locate(where, step)  # once: a live run may save another one meanwhile
  step = run[1] if run else step
  weights = formats.read(path, step=step, heads=heads, pool=pool, parts=PARTS)
  loaded = backbone.of_weights(weights, dtype=dtype)
  teacher = album.Teacher(
    module=loaded.module,
    params=loaded.params,
    heads=prototypes.open_heads(weights.params, dtype=dtype),
    sizes=loaded.image_sizes(resize=resize, crop=crop),
    devices=1,
  )
  if not run:
    return teacher, Origin()
  return teacher, Origin(step, runs.read_record(runs.find(where, step))["config"])


def run_crops(
  source: sources.Source,
  config: dict[str, Any] | None,
  *,
  count: int,
  max_pixels: int = images.MAX_PIXELS,
) -> list[crops.Cropped]:
  """Crops of some images as the run of a config makes them.

  [] without a config, or where it lacks fields.

  Args:
    source: of the images.
    config: of `load`.
    count: images, evenly spaced.
    max_pixels: larger images are corrupt.

  Raises:
    UserError: no image near one of them is readable.
  """
  if config is None or "augment" not in config:  # of converted weights
    return []
  fields = ml_collections.ConfigDict(config_fields.with_added(config))
  fields.data.max_pixels = max_pixels

  def read(record: int, make: Callable) -> Any:
    return bad_records.read_or_substitute(source, record, make=make)[0]

  try:
    return crops.of_config(read, samples.evenly(source, count).indices, fields)
  except (AttributeError, KeyError, TypeError) as error:  # a config of another version
    logging.warning("no picture of crops: the run's config has no %s", error)
    return []
