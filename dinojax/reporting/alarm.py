"""Alarm of a run whose loss stays where nothing is learnt, or falls to a collapse.

Free of JAX: the page of a run judges by the same levels.
"""

NEAR = 0.01  # of the nothing-learnt loss: closer to it is the same
MUCH_WAITING = 0.2  # share of the time in which devices wait for data
COLLAPSED = 0.02  # of the nothing-learnt loss: below, all images share one prototype


def is_nothing_learnt(mean: float, nothing_learnt: float) -> bool:
  """Whether a mean DINO + iBOT loss is that of a student that predicts at random."""
  return abs(mean - nothing_learnt) < NEAR * nothing_learnt


def is_collapse(mean: float, nothing_learnt: float) -> bool:
  """Whether a mean DINO + iBOT loss is so low that the targets must be trivial."""
  return mean < COLLAPSED * nothing_learnt


class Alarm:
  """Warns when the loss stays where nothing is learnt, or falls to a collapse."""

  def __init__(self, *, window: int, nothing_learnt: float):
    """window: steps to average over. nothing_learnt: `losses.nothing_learnt`."""
    self._window, self._nothing_learnt = window, nothing_learnt
    self._losses = []

  def update(self, step: int, loss: float) -> str | None:
    """Adds a step's DINO + iBOT loss; returns a warning, at the end of a window."""
    self._losses.append(loss)
    if len(self._losses) < self._window:
      return None
    mean, self._losses = sum(self._losses) / self._window, []
    seen = f"step {step}: mean DINO + iBOT loss of {self._window} steps is {mean:.3f}"
    if is_nothing_learnt(mean, self._nothing_learnt):
      return (
        f"ALARM {seen}, the value of a student that has learnt nothing"
        f" ({self._nothing_learnt:.3f}); check learning rate, teacher_temp and"
        " teacher_entropy"
      )
    if is_collapse(mean, self._nothing_learnt):
      return (
        f"ALARM {seen}, close to 0, a collapse: all images may share one prototype;"
        " check teacher_entropy, loss_koleo and the targets"
      )
    return None
