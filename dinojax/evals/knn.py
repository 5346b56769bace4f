"""Weighted k-nearest-neighbour accuracy of frozen features, exact, on the whole mesh.

Source: DINO (arXiv:2104.14294), after Wu et al. (arXiv:1805.01978).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dinojax import errors
from dinojax.data import classes, layouts, sources
from dinojax.evals import features, logreg, votes
from dinojax.networks import vit


class Evaluation:
  """k-NN evaluation of a run, from two sources that are checked before it starts."""

  def __init__(
    self,
    train: sources.Source,
    test: sources.Source,
    *,
    mesh: Mesh,
    ks: Sequence[int],
    temperature: float,
    resize: int,
    crop: int,
    batch_size: int,
    max_pixels: int,
    workers: int,
    progress: Callable[[], None],
    layout: layouts.Layout = layouts.RGB,
  ):
    """Checks the sources.

    Args:
      train: images whose labels vote.
      test: images to classify.
      mesh: the training mesh.
      ks: numbers of neighbours; as temperature, resize, crop, batch_size of
        `config.knn`.
      temperature: of the softmax over similarities that weighs the votes.
      resize: pixels of the shorter side.
      crop: pixels of a side of the centre crop.
      batch_size: images of a batch.
      max_pixels: `config.data.max_pixels`; larger images are corrupt.
      workers: Grain processes.
      progress: called after every batch.
      layout: of the images; others are corrupt.

    Raises:
      UserError: a source has no labels, or `test` has other classes.
    """
    for name, source in (("train", train), ("test", test)):
      if not source.class_names:
        raise errors.UserError(
          f"config.knn.{name} has no labels, which k-NN evaluation needs; give a"
          " labelled source, or set config.knn.every=0"
        )
    if len(train) < max(ks):
      raise errors.UserError(
        f"config.knn.ks={tuple(ks)} asks for more neighbours than the {len(train)}"
        " images of config.knn.train; lower it"
      )
    self._train, self._test = train, classes.match(train, test)
    self._vote = dict(mesh=mesh, ks=ks, temperature=temperature)
    self._extract = functools.partial(
      features.extract,
      mesh=mesh,
      batch_size=batch_size,
      resize=resize,
      crop=crop,
      max_pixels=max_pixels,
      workers=workers,
      progress=progress,
      layout=layout,
    )

  @property
  def images(self) -> dict[str, int]:
    """Images of the sources, {"train": count, "test": count}; some may be corrupt."""
    return {"train": len(self._train), "test": len(self._test)}

  def accuracy(
    self, feature: Callable, params: Any, *, linear: bool = False
  ) -> dict[str, float]:
    """{"knn_top1_k10": share of right answers within 0..1, ...}.

    Args:
      feature: jitted (params, images [B, crop, crop, C]) -> features [B, D].
      params: of `feature`.
      linear: whether to add "linear", the top-1 of `logreg.logreg`.
    """
    bank, queries = (
      self._extract(source, feature, params, description=f"k-NN: {name} features")
      for name, source in (("train", self._train), ("test", self._test))
    )
    names = self._train.class_names
    found = knn(bank, queries, num_classes=len(names), **self._vote)
    if linear:
      try:
        probe = logreg.logreg(bank, queries, class_names=names, seed=0)
      except errors.UserError as error:
        raise errors.UserError(f"config.knn.linear: {error}") from error
      found["linear"] = probe["logreg_top1"]
    return found

  def compare(
    self,
    feature: Callable,
    trained: Any,
    untrained: Any,
    *,
    linear: bool,
    known: dict[str, float] | None,
    normalize: Callable[[jax.Array], jax.Array] = vit.normalize,
  ) -> dict[str, dict[str, float]]:
    """The accuracies of a network, trained and not, and of raw pixels, by name.

    Args:
      feature: as of `accuracy`.
      trained: params of `feature`.
      untrained: params of `feature`.
      linear: as of `accuracy`.
      known: the accuracy of `trained`, if it is known.
      normalize: raw pixels to what the network sees.
    """
    pixels = functools.partial(pixel_feature, normalize)
    return {
      "trained teacher": known or self.accuracy(feature, trained, linear=linear),
      "same network, untrained": self.accuracy(feature, untrained, linear=linear),
      "raw pixels": self.accuracy(pixels, None, linear=linear),
    }


def open_evaluation(
  config, *, mesh: Mesh, progress: Callable[[], None]
) -> Evaluation | None:
  """The `Evaluation` of a run's `config.knn`; None if it is off."""
  group = config.knn
  if not group.every:
    return None
  train, test = (
    sources.open_source(group[name], field=f"config.knn.{name}")
    for name in ("train", "test")
  )
  names = ("ks", "temperature", "resize", "crop", "batch_size")
  rest = {name: group[name] for name in names}
  return Evaluation(
    train,
    test,
    mesh=mesh,
    max_pixels=config.data.max_pixels,
    workers=config.workers,
    progress=progress,
    layout=layouts.of(config.backbone),
    **rest,
  )


@functools.partial(jax.jit, static_argnums=0)
def pixel_feature(normalize: Callable, _: None, images: jax.Array) -> jax.Array:
  """The feature that needs no network: [B, S, S, C] -> [B, S*S*C]."""
  return normalize(images).reshape(len(images), -1)


def knn(
  bank: features.Bank,
  queries: features.Bank,
  *,
  num_classes: int,
  ks: Sequence[int],
  temperature: float,
  mesh: Mesh,
  field: str = "config.knn.",
) -> dict[str, float]:
  """Top-1 and top-5 accuracy for each k; rows with label -1 count nowhere.

  The max(ks) nearest by cosine similarity weigh softmax(similarity / temperature); a
  class scores the sum over its own among the first k. Equal similarities rank by the
  bank's order, and equal scores by class, on any mesh alike.

  Raises:
    UserError: the bank has fewer labelled rows than max(ks), or the queries have none.
  """
  ks = tuple(sorted(ks))
  check(bank.labels, ks=ks, field=field)
  if not (total := features.count_labelled(queries)):
    raise errors.UserError(f"{field}test has no readable image with a label")
  steps, together = len(queries.labels), votes.together(queries)
  count = functools.partial(
    votes.count_right,
    together=together,
    num_classes=num_classes,
    ks=ks,
    temperature=temperature,
    mesh=mesh,
  )
  starts = range(0, steps, together)
  right = sum(jax.device_get(count(bank, queries, step)) for step in starts)
  names = [f"knn_top{top}_k{k}" for top in (1, 5) for k in ks]
  return dict(zip(names, (right / total).ravel().tolist(), strict=True))


def describe(accuracy: dict[str, float]) -> str:
  """One line: top-1 of each k."""
  top1 = {k: v for k, v in accuracy.items() if k.startswith("knn_top1_k")}
  return "k-NN top-1 " + ", ".join(
    f"{value:.1%} (k={name.removeprefix('knn_top1_k')})" for name, value in top1.items()
  )


def is_in(accuracy: dict[str, float]) -> bool:
  """Whether there is anything to describe."""
  return any(name.startswith("knn_top1_k") for name in accuracy)


def table(results: dict[str, dict[str, float]]) -> str:
  """Several accuracies below each other, a column for each top and k."""
  names = list(next(iter(results.values())))
  heads = [name.removeprefix("knn_").replace("_", " ") for name in names]
  first = max(map(len, results))
  lines = [" " * first + "".join(f"{head:>11}" for head in heads)]
  for title, accuracy in results.items():
    cells = "".join(f"{accuracy[name]:>11.1%}" for name in names)
    lines.append(f"{title:{first}}{cells}")
  return "\n".join(["k-NN accuracy", *lines])


def describe_comparison(results: dict[str, dict[str, float]]) -> str:
  """The table of `Evaluation.compare`, and what it shows."""
  return f"{table(results)}\n\n{verdict(results)}"


def verdict(results: dict[str, dict[str, float]]) -> str:
  """What `table` shows, in plain words, by the top-1 of the fewest neighbours."""
  name = next(iter(next(iter(results.values()))))
  teacher, untrained, pixels = (100 * accuracy[name] for accuracy in results.values())
  margin = round(teacher - pixels, 1)
  if margin > 0:
    shown = f"{margin} points above raw pixels"
  else:
    less = f"{-margin} points below" if margin else "as much as"
    shown = f"{less} raw pixels; train longer, or on more images"
  return (
    f"Without any label, training took k-NN (k={name.removeprefix('knn_top1_k')}) from"
    f" {untrained:.1f}% to {teacher:.1f}%: {shown}."
  )


def check(labels: np.ndarray | jax.Array, *, ks: Sequence[int], field: str) -> None:
  """Raises UserError if there are fewer labels, of train, than the largest k."""
  if (count := int((labels >= 0).sum())) < max(ks):
    raise errors.UserError(
      f"{field}ks asks for {max(ks):,} neighbours, and {field}train has {count:,}"
      f" labelled images; use at most {count:,}"
    )
