"""Tasks of an evaluation: k-NN, linear probe, logistic regression and retrieval.

The fields of a task are its settings. Each task checks the labels, before features are
computed, and turns features into numbers by name. Tasks of patches: dense_tasks.py.
"""

import dataclasses
from typing import Protocol

import numpy as np
from jax.sharding import Mesh

from dinojax.evals import (
  features,
  few_shot,
  intervals,
  knn,
  linear,
  logreg,
  retrieval,
)

RETRIEVAL_BLOCK = 64  # queries at once: each ranks the whole gallery
LINEAR_BLOCKS = 4  # whose CLS tokens the linear protocol uses


class Task(Protocol):
  """What every task of image features offers."""

  @property
  def needs_classes(self) -> bool:
    """Whether `check` needs the classes of train's images, not just their number."""

  def check(self, labels: dict[str, np.ndarray], class_names: tuple[str, ...]) -> None:
    """Raises UserError if it cannot work with the labels of train, test and val."""

  def evaluate(
    self,
    banks: dict[str, features.Bank],
    *,
    class_names: tuple[str, ...],
    width: int,
    mesh: Mesh,
  ) -> dict:
    """Returns its numbers by name; width: D of a token."""


@dataclasses.dataclass(frozen=True)
class Knn:
  """k-NN from all of train, and from a few images of each class."""

  ks: tuple[int, ...]
  temperature: float
  shots: tuple[int, ...]
  tries: int
  seed: int

  @property
  def needs_classes(self) -> bool:
    """For few images of each class."""
    return bool(self.shots)

  def check(self, labels: dict, class_names: tuple[str, ...]) -> None:
    """Refuses to take more images than there are."""
    knn.check(labels["train"], ks=self.ks, field="--")
    if self.shots:
      few_shot.check(labels["train"], class_names=class_names, shots=self.shots)

  def evaluate(self, banks: dict, *, class_names: tuple, width: int, mesh: Mesh):
    """Returns the accuracies, with intervals of those from all of train."""
    del width
    pair = banks["train"], banks["test"]
    votes = dict(ks=self.ks, temperature=self.temperature, mesh=mesh)
    found = knn.knn(*pair, num_classes=len(class_names), field="--", **votes)
    found = intervals.added(found, features.count_labelled(pair[1]), seed=self.seed)
    if self.shots:
      draws = dict(shots=self.shots, tries=self.tries, seed=self.seed)
      found |= few_shot.few_shot(*pair, class_names=class_names, **draws, **votes)
    return found


@dataclasses.dataclass(frozen=True)
class Linear:
  """The linear protocol of DINOv2."""

  steps: int
  batch_size: int
  seed: int
  needs_classes = False

  @staticmethod
  def columns(depth: int) -> tuple[tuple[str, int], ...]:
    """The features that it reads, as of `backbone.columns`; depth: in blocks."""
    blocks = range(min(LINEAR_BLOCKS, depth), 0, -1)
    return (*(("cls", -block) for block in blocks), ("gap", -1))

  def check(self, labels: dict, class_names: tuple[str, ...]) -> None:
    """Works with any labels."""

  def evaluate(self, banks: dict, *, class_names: tuple, width: int, mesh: Mesh):
    """Returns the best of its heads, and all of them."""
    found = linear.linear(
      banks["train"],
      banks["test"],
      val=banks.get("val"),
      width=width,
      num_classes=len(class_names),
      steps=self.steps,
      batch_size=self.batch_size,
      seed=self.seed,
      mesh=mesh,
    )
    return intervals.added(
      found, features.count_labelled(banks["test"]), seed=self.seed
    )


@dataclasses.dataclass(frozen=True)
class LogReg:
  """L2 logistic regression."""

  seed: int
  needs_classes = True

  def check(self, labels: dict, class_names: tuple[str, ...]) -> None:
    """Refuses a single class, and a class of a single image."""
    logreg.check(labels["train"], class_names=class_names)

  def evaluate(self, banks: dict, *, class_names: tuple, width: int, mesh: Mesh):
    """Returns the accuracies and the chosen C."""
    del width, mesh
    pair = banks["train"], banks["test"]
    found = logreg.logreg(*pair, class_names=class_names, seed=self.seed)
    return intervals.added(found, features.count_labelled(pair[1]), seed=self.seed)


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """Ranking of train's images by similarity to each of test's.

  test_is_train: each image is then ranked among all the others.
  """

  recall: tuple[int, ...]
  test_is_train: bool
  needs_classes = False

  def check(self, labels: dict, class_names: tuple[str, ...]) -> None:
    """Refuses recall of more images than there are, and sets without any match."""
    del class_names
    queries = None if self.test_is_train else labels["test"]
    retrieval.check(labels["train"], queries, ks=self.recall)

  def evaluate(self, banks: dict, *, class_names: tuple, width: int, mesh: Mesh):
    """Returns mean average precision and recall."""
    del class_names, width
    queries = None if self.test_is_train else banks["test"]
    return retrieval.retrieval(
      banks["train"], queries, ks=self.recall, mesh=mesh, block=RETRIEVAL_BLOCK
    )
