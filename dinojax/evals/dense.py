"""Dense evaluation of a run: k-NN segmentation by the patches of its EMA teacher.

What `config.dense_eval` asks for while a run trains. Image features may improve while
patches get worse: that is what Gram anchoring is for, and k-NN on images cannot see.
"""

import functools
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from dinojax import errors
from dinojax.data import layouts
from dinojax.evals import dense_sources, patches, segmentation

REPORTED = ("knn_segmentation_miou", "knn_segmentation_accuracy")


class Evaluation:
  """k-NN segmentation of a run, from two sources that are checked before it starts."""

  def __init__(self, config, *, mesh: Mesh, progress: Callable[[], None]):
    """Checks the sources.

    Args:
      config: of the run, whose `dense_eval.every` is not 0.
      mesh: of the run.
      progress: called after every batch.

    Raises:
      UserError: a source has no label maps, or they have no class, or others.
    """
    group = config.dense_eval
    specs = {name: group[name] for name in ("train", "test")}
    field = "config.dense_eval."
    self._sources = dense_sources.open_sources(specs, task="dense_eval", field=field)
    reading = dict(workers=config.workers, progress=progress)
    self._names = dense_sources.class_names(self._sources, **reading)
    most = functools.partial(
      segmentation.most_images, k=group.k, num_classes=len(self._names)
    )
    self._most, self._group = most, group
    reading |= dict(mesh=mesh, layout=layouts.of(config.backbone))
    self._reading = dict(max_pixels=config.data.max_pixels, **reading)

  def accuracy(
    self, apply: Callable, params: Any, *, patch_size: int
  ) -> dict[str, float]:
    """{"knn_segmentation_miou": mean IoU within 0..1, ..._accuracy: share of pixels}.

    Args:
      apply: jitted (params, images [B, crop, crop, C]) -> patch tokens [B, N, D].
      params: of `apply`.
      patch_size: of the network, pixels.

    Raises:
      UserError: features are not finite, or no image can be read.
    """
    group, mesh = self._group, self._reading["mesh"]
    most = min(group.batch_size, self._most((group.crop // patch_size) ** 2))
    reader = patches.Reader(
      apply,
      params,
      patch_size=patch_size,
      side=group.crop,
      batch_size=max(most // mesh.size, 1) * mesh.size,
      **self._reading,
    )
    memory = patches.remember(
      reader,
      self._sources["train"],
      num_classes=len(self._names),
      most=group.memory,
      seed=0,
      description="patches of config.dense_eval.train",
    )
    try:
      found = segmentation.knn_segmentation(
        *(reader, memory, self._sources["test"]),
        class_names=self._names,
        **{name: group[name] for name in ("k", "temperature")},
      )
    except errors.UserError as error:
      raise errors.UserError(f"config.dense_eval: {error}") from error
    return {name: found[name] for name in REPORTED}


def open_evaluation(
  config, *, mesh: Mesh, progress: Callable[[], None]
) -> Evaluation | None:
  """The `Evaluation` of a run's `config.dense_eval`; None if it is off."""
  if not config.dense_eval.every:
    return None
  return Evaluation(config, mesh=mesh, progress=progress)


def is_in(accuracy: dict[str, float]) -> bool:
  """Whether there is anything to describe."""
  return REPORTED[0] in accuracy


def describe(accuracy: dict[str, float]) -> str:
  """One line: the mean IoU."""
  return f"k-NN segmentation, mean IoU {accuracy[REPORTED[0]]:.1%}"
