"""Retention of checkpoints: the last, the best by top-1, and those that are named."""

from collections.abc import Collection, Sequence


class KeepLastAndBest:
  """Orbax's preservation policy: the last, the best by top-1, and given steps.

  Orbax's own ranking reads a metrics file per checkpoint at start-up and gives up when
  one is damaged; this one ranks by what the readable records say.
  """

  def __init__(
    self,
    *,
    keep_last: int,
    keep_best: int,
    keep_steps: Collection[int] = (),
    ranked_by: str = "knn_top1",
  ):
    """See `config.checkpoint`.

    Args:
      keep_last: how many of the newest to keep, at least 1.
      keep_best: how many of the best to keep besides.
      keep_steps: steps to keep besides.
      ranked_by: the best have the highest metric whose name starts so.
    """
    self._ranked_by = ranked_by
    self._keep_last, self._keep_best = keep_last, keep_best
    self._keep_steps = frozenset(keep_steps)
    self._top1: dict[int, float] = {}

  def note(self, step: int, metrics: dict[str, float] | None) -> None:
    """Takes the results of a checkpoint, if it has any."""
    top1 = [v for k, v in (metrics or {}).items() if k.startswith(self._ranked_by)]
    if top1:
      self._top1[step] = max(top1)

  def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
    """Which of the checkpoints, in rising order of their steps, stay."""
    steps = [checkpoint.step for checkpoint in checkpoints]
    rank = {step: (self._top1[step], step) for step in steps if step in self._top1}
    best = sorted(rank, key=rank.get, reverse=True)[: self._keep_best]
    kept = {*best, *steps[-self._keep_last :], *self._keep_steps}
    return [step in kept for step in steps]
