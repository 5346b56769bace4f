"""Tasks of an evaluation that read patches: attentive probe, segmentation, depth.

The fields of a task are its settings.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

from dinojax.data import sources
from dinojax.evals import (
  attentive,
  depth,
  linear_segmentation,
  logreg_segmentation,
  patches,
  segmentation,
)


@dataclasses.dataclass(frozen=True)
class Attentive:
  """A learned query that looks at patches, for labels of images."""

  steps: int
  batch_size: int
  min_area: float
  flip_prob: float
  seed: int

  def evaluate(
    self,
    network: attentive.Network,
    opened: dict[str, sources.Source],
    class_names: tuple[str, ...],
  ) -> dict:
    """Returns the best of its probes, and all of them."""
    return attentive.attentive(
      network, opened, num_classes=len(class_names), **dataclasses.asdict(self)
    )


class Seen(NamedTuple):
  """A frozen network for tasks of patches.

  reader: the network. width: D. memory: patches of "train", computed by the first call.
  """

  reader: patches.Reader
  width: int
  memory: Callable[[], patches.Memory]


class Task(Protocol):
  """What every task of patches and label maps offers."""

  def most_images(self, grid: int, num_classes: int) -> int:
    """How many images of `grid` patches a batch should have at most."""

  def evaluate(
    self,
    seen: Seen,
    opened: dict[str, sources.DenseSource],
    class_names: tuple[str, ...],
  ) -> dict:
    """Returns its numbers by name."""


@dataclasses.dataclass(frozen=True)
class KnnSegmentation:
  """Segmentation by the nearest patches, without training."""

  k: int
  temperature: float
  memory: int
  seed: int

  def most_images(self, grid: int, num_classes: int) -> int:
    """As many as have soft labels of all neighbours in memory."""
    return segmentation.most_images(grid, k=self.k, num_classes=num_classes)

  def evaluate(
    self,
    seen: Seen,
    opened: dict[str, sources.DenseSource],
    class_names: tuple[str, ...],
  ) -> dict:
    """Returns IoU of the classes, and its mean."""
    votes = dict(k=self.k, temperature=self.temperature)
    return segmentation.knn_segmentation(
      seen.reader, seen.memory(), opened["test"], class_names=class_names, **votes
    )


@dataclasses.dataclass(frozen=True)
class LogRegSegmentation:
  """Segmentation by logistic regression on patches."""

  memory: int
  seed: int

  def most_images(self, grid: int, num_classes: int) -> int:
    """As many as have logits in memory."""
    return segmentation.most_images(grid, k=1, num_classes=num_classes)

  def evaluate(
    self,
    seen: Seen,
    opened: dict[str, sources.DenseSource],
    class_names: tuple[str, ...],
  ) -> dict:
    """Returns IoU of the classes, and its mean."""
    return logreg_segmentation.logreg_segmentation(
      *(seen.reader, seen.memory(), opened["test"]),
      class_names=class_names,
      seed=self.seed,
    )


@dataclasses.dataclass(frozen=True)
class LinearSegmentation:
  """Segmentation by a linear layer on patches."""

  steps: int
  batch_size: int
  flip_prob: float
  seed: int

  def most_images(self, grid: int, num_classes: int) -> int:
    """As many as have logits of all heads in memory."""
    heads = len(linear_segmentation.RATES)
    return segmentation.most_images(grid, k=heads, num_classes=num_classes)

  def evaluate(
    self,
    seen: Seen,
    opened: dict[str, sources.DenseSource],
    class_names: tuple[str, ...],
  ) -> dict:
    """Returns IoU of the classes by the best head, and of all heads."""
    return linear_segmentation.linear_segmentation(
      seen.reader,
      opened,
      class_names=class_names,
      width=seen.width,
      **dataclasses.asdict(self),
    )


@dataclasses.dataclass(frozen=True)
class Depth:
  """Depth by a linear layer on patches."""

  low: float
  high: float
  crop: str
  steps: int
  batch_size: int
  flip_prob: float
  seed: int

  def most_images(self, grid: int) -> int:
    """As many as have outputs of all heads in memory."""
    heads = len(depth.RATES)
    return segmentation.most_images(grid, k=heads, num_classes=depth.BINS)

  def evaluate(self, seen: Seen, opened: dict[str, sources.DepthSource]) -> dict:
    """Returns errors of the best head, and the RMSE of all heads."""
    return depth.depth(
      seen.reader, opened, width=seen.width, **dataclasses.asdict(self)
    )
