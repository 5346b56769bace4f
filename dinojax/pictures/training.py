"""Pictures of a run while it trains, every config.pictures.every steps.

The same as of `python -m dinojax.report`, in TensorBoard's image tab. Nothing is done,
or held in memory, where they are off. A picture that fails is left out with a warning.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dinojax import dino, errors
from dinojax.data import bad_records, mixture, sources
from dinojax.pictures import album, crops, exhibits, files, prototypes
from dinojax.reporting import console, run_log
from dinojax.weights import runs

COUNT, AT_MOST, BATCH = 8, 1_000, 256  # images: for patches, for the map, of a batch


class Recorder:
  """Draws the teacher of a run; all processes make every call together."""

  def __init__(
    self,
    config,
    data: mixture.Mixture,
    *,
    nets: dino.Nets,
    mesh: Mesh,
    progress: Callable[[], None],
  ):
    """Takes what a run is made of.

    Args:
      config: of the run, checked.
      data: that it trains on, of which crops are shown.
      nets: its modules.
      mesh: its mesh, which is in context when it writes.
      progress: called now and then.

    Raises:
      UserError: pictures are wanted and TensorBoard is not.
    """
    if config.pictures.every and "tensorboard" not in config.loggers:
      raise errors.UserError(
        f"config.pictures.every={config.pictures.every} needs tensorboard among"
        f" config.loggers={tuple(config.loggers)}; add it, or set"
        " config.pictures.every=0"
      )
    self._config, self._data, self._nets, self._mesh = config, data, nets, mesh
    self._progress = progress

  def write(self, step: int, teacher: Any, log: run_log.Log) -> None:
    """Writes the pictures of a step if they are due.

    Args:
      step: completed updates.
      teacher: weights of backbone and heads.
      log: of the run.
    """
    every = self._config.pictures.every
    if not every or step % every:
      return
    log.flush()
    images = {}
    try:
      shown = self._collect(teacher)
      if jax.process_index() == 0:
        shown = dataclasses.replace(shown, cropped=self._cropped(step))
        views = exhibits.map_views(shown.many, umap=False)
        drawn = files.sheets(shown, views)
        images = {f"pictures/{name}": image for name, image in drawn.items()}
    except Exception as error:  # a run is worth more than its pictures
      reason = " ".join(str(error).split())
      console.say(f"warning: no pictures of step {step}: {reason}")
    log.write_images(step, images)

  @functools.cached_property
  def _source(self) -> sources.Source:
    """The images shown: of the evaluation, or of the first source without one."""
    if self._config.knn.every:
      return sources.open_source(self._config.knn.test, field="config.knn.test")
    return self._data.locate(0)[0]

  def _collect(self, teacher: Any) -> album.Album:
    config = self._config
    dtype = config.backbone.dtype
    return album.collect(
      album.Teacher(
        module=self._nets.backbone,
        params=teacher["backbone"],
        heads=prototypes.open_heads(teacher, dtype=dtype),
        sizes=runs.image_sizes(config.to_dict()),
        devices=self._mesh.size,
      ),
      self._source,
      count=COUNT,
      at_most=AT_MOST,
      batch_size=BATCH,
      workers=min(config.workers, 1),
      max_pixels=config.data.max_pixels,
      progress=self._progress,
    )

  def _cropped(self, step: int) -> list[crops.Cropped]:
    """Crops of images of the training data, others at each step."""
    count = min(COUNT, len(self._data))
    records = np.random.default_rng((self._config.seed, step)).choice(
      len(self._data), count, replace=False
    )
    return crops.of_config(
      functools.partial(read, self._data), sorted(records.tolist()), self._config
    )


def read(data: mixture.Mixture, record: int, make: Callable) -> Any:
  """What `make` makes of a record's image, or of its substitute's."""
  source, index = data.locate(record)
  return bad_records.read_or_substitute(source, index, make=make)[0]
