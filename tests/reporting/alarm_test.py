"""An alarm tells a run that learns from one that does not, or no longer."""

import pytest

from dinojax.reporting import alarm


def warnings_of(losses, window=4, nothing_learnt=10.0):
  watching = alarm.Alarm(window=window, nothing_learnt=nothing_learnt)
  found = [(i, watching.update(i, loss)) for i, loss in enumerate(losses, 1)]
  return [(step, line) for step, line in found if line]


def test_an_alarm_tells_nothing_learnt_from_collapse_once_a_window():
  (first, nothing), (second, _) = warnings_of([9.8, 10.2, 9.9, 10.0, 10, 10, 10, 10])
  assert (first, second) == (4, 8)
  assert "nothing" in nothing
  ((step, collapse),) = warnings_of([0.19] * 7)
  assert step == 4
  assert "prototype" in collapse
  assert "\n" not in nothing + collapse


@pytest.mark.parametrize("loss", [9.8, 10.2, 5.0, 0.21])
def test_no_alarm_between_collapse_and_nothing_learnt(loss):
  assert warnings_of([loss] * 8) == []


def test_no_alarm_before_a_window_is_full_and_none_for_single_steps():
  assert warnings_of([10.0] * 3) == []
  assert warnings_of([10.0, 5.0, 5.0, 5.0] * 2) == []
