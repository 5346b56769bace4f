"""Feed of the training step: global batches on the mesh, one a step.

Each process reads its slice of a batch. Corrupt records are logged on the way, and end
the run when they are many.
"""

import jax
from jax.sharding import Mesh

from dinojax import sharding
from dinojax.data import bad_records, mixture, train_batches


class Feed:
  """Iterator over the batches of a run, from `start_step` without an end."""

  def __init__(self, config, data: mixture.Mixture, *, mesh: Mesh, start_step: int):
    """Starts to read ahead.

    Args:
      config: of the run.
      data: its records.
      mesh: of all processes.
      start_step: completed updates.
    """
    self._mesh, self._batch_size = mesh, config.data.batch_size
    self._groups = config.data.batch_size // config.group_size
    self._positions = sharding.local_positions(mesh, self._groups)
    self._local = train_batches.open_batches(
      config, data, groups=self._positions, start_step=start_step
    )
    self._bad_records = bad_records.Monitor(
      data, max_bad_share=config.data.max_bad_share
    )

  def __next__(self) -> dict[str, jax.Array]:
    """Returns the next batch, its leading axes split over the mesh.

    Raises:
      UserError: too many records are corrupt.
    """
    batch = next(self._local)
    self._bad_records.update(batch.pop("bad_records"))
    return sharding.put_batch(self._mesh, batch, self._positions, self._groups)

  def images_per_second(self) -> float:
    """How many images the input could make, see `prefetch.Batches.rate`."""
    return self._local.rate() * self._batch_size

  def close(self) -> None:
    """Ends the processes that read ahead."""
    self._local.close()
