"""A mixture keeps shares and epochs, and any place of its stream is reached at once."""

import time

import numpy as np
import pytest

from dinojax import errors
from dinojax.data import mixture


class Span:
  """A source of so many records."""

  def __init__(self, length, where="spans"):
    self.length, self.where = length, where

  def __len__(self):
    return self.length

  def name(self, record):
    return f"span#{record}"


def stream(lengths, weights, seed=0):
  return mixture.Mixture([Span(n) for n in lengths], weights).order(seed)


def test_every_window_holds_each_source_by_its_weight():
  order = stream([40, 300, 90], [0.5, 0.3, 0.2])
  parts = np.searchsorted([40, 340], [order[i] for i in range(1_500)], side="right")
  for part, share in enumerate([0.5, 0.3, 0.2]):
    counts = np.append(0, np.cumsum(parts == part))
    for window in (10, 77, 500):
      seen = counts[window:] - counts[:-window]
      assert np.abs(seen - share * window).max() <= 3


def test_each_source_has_epochs_of_its_own_in_ever_new_orders():
  endless = stream([7, 30], [1, 2])
  order = [endless[i] for i in range(360)]
  for start, length, epochs in ((0, 7, 17), (7, 30, 8)):
    own = [x for x in order if start <= x < start + length][: epochs * length]
    epochs = np.reshape(own, (epochs, length))
    assert (np.sort(epochs) == np.arange(start, start + length)).all()
    assert len(np.unique(epochs, axis=0)) == len(epochs)


def test_the_same_source_twice_is_not_twice_the_same_order():
  endless = stream([50, 50], [1, 1])
  order = [endless[i] for i in range(100)]
  one = [x for x in order if x < 50]
  other = [x - 50 for x in order if x >= 50]
  assert sorted(one) == sorted(other) and one != other


def test_a_far_place_is_reached_at_once_and_is_the_one_that_walking_reaches():
  begin = time.perf_counter()
  lengths, far = [142_000_000, 1_281_167], 2_048_000_000  # 1,000,000 steps of 2,048
  order = stream(lengths, [0.9, 0.1])
  jumped = [order[far + i] for i in range(500)]
  assert time.perf_counter() - begin < 60  # walking there would take hours
  iterator = iter(stream(lengths, [0.9, 0.1])[far - 500 :].to_iter_dataset())
  walked = [next(iterator) for _ in range(1_000)]
  assert walked[500:] == jumped
  assert stream(lengths, [0.9, 0.1], seed=1)[far] != jumped[0]


def test_records_are_named_with_their_source():
  mixed = mixture.Mixture([Span(3, "a"), Span(5, "b")], [1, 3])
  assert (mixed.name(2), mixed.name(3)) == ("span#2 of a", "span#0 of b")
  assert mixed.locate(7)[1] == 4
  assert str(mixed) == "3 images of a (25.0%), 5 images of b (75.0%)"


def test_a_source_smaller_than_its_part_of_a_batch_is_named():
  mixed = mixture.Mixture([Span(16, "a"), Span(5, "b")], [1, 3])
  (line,) = mixed.small_sources(64)
  assert line.startswith("b has 5 images, of which a batch of 64 takes 48: it holds")
  assert "each about 9.6 times" in line
  assert not mixed.small_sources(6)


@pytest.mark.parametrize(
  "weights, said", [((1.0,), "one for each of 2"), ((1.0, 0.0), "must be above 0")]
)
def test_weights_that_will_not_do_are_one_line(weights, said):
  with pytest.raises(errors.UserError, match=said) as raised:
    mixture.open_mixture(["embedded:digits:train", "folder:/no"], weights)
  assert str(raised.value).startswith(f"config.data.weights={weights} must be")


def test_a_source_that_will_not_open_is_named_by_its_place():
  with pytest.raises(errors.UserError, match=r'config.data.sources\[1\]="folder:/no"'):
    mixture.open_mixture(["embedded:digits:train", "folder:/no"], (1.0, 1.0))
