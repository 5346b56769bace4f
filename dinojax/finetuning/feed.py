"""Feed of a fine-tuning: labelled batches on the mesh, one a step."""

from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from dinojax import sharding
from dinojax.data import (
  bad_records,
  images,
  labelled_batches,
  layouts,
  mixture,
  sources,
)
from dinojax.finetuning import tuning


class Feed(Iterator):
  """Iterator over the batches of a run, on the mesh; logs corrupt images on the way."""

  def __init__(
    self,
    source: sources.Source,
    recipe: tuning.Recipe,
    *,
    mesh: Mesh,
    workers: int,
    start_step: int,
    maps: labelled_batches.Maps | None = None,
    max_pixels: int = images.MAX_PIXELS,
    layout: layouts.Layout = layouts.RGB,
  ):
    """Starts to read ahead; arguments as of `labelled_batches.open_batches`."""
    data = mixture.Mixture([source], [1.0])
    self._mesh, self._size = mesh, recipe.batch_size
    self._sets = source.sets if recipe.task == "labels" else None
    self._rows = sharding.local_positions(mesh, self._size)
    self._local = labelled_batches.open_batches(
      data,
      seed=recipe.seed,
      batch_size=self._size,
      rows=self._rows,
      kind=labelled_batches.random_crop(
        size=recipe.crop, min_area=recipe.min_area, flip_prob=recipe.flip_prob
      ),
      workers=workers,
      start_step=start_step,
      maps=maps,
      max_pixels=max_pixels,
      layout=layout,
    )
    # Of a set in which much is corrupt the user sees it; nothing here ends the run.
    self._bad_records = bad_records.Monitor(data, max_bad_share=1.0)

  def __next__(self) -> dict[str, jax.Array]:
    """The next batch, its leading axes split over the mesh."""
    batch = next(self._local)
    self._bad_records.update(batch.pop("bad_records"))
    if self._sets is not None:
      batch["label"] = self._sets[batch["label"]]
    return sharding.put_batch(self._mesh, batch, self._rows, self._size)

  def images_per_second(self) -> float:
    """How many images the input could make, see `prefetch.Batches.rate`."""
    return self._local.rate() * self._size

  def close(self) -> None:
    """Ends the processes that read ahead."""
    self._local.close()
