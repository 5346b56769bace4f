"""Linear segmentation learns what colours tell, and chooses its head by mean IoU."""

import blocks
import jax
import pytest
import varied
from absl import flags

from dinojax import errors
from dinojax.evals import linear_segmentation, pixel_heads


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # Grain's


def evaluate(opened, steps=80):
  found = linear_segmentation.linear_segmentation(
    blocks.reader((1, 1)),
    opened,
    class_names=blocks.NAMES,
    width=12,
    steps=steps,
    batch_size=8,
    flip_prob=0.5,
    seed=0,
  )
  return {k.removeprefix("linear_segmentation_"): x for k, x in found.items()}


def test_the_best_head_on_test_tells_classes_by_their_colours():
  train, test = (varied.Varied(24, s, (3,), varied.SIZES[:1]) for s in range(2))
  on_test = evaluate(dict(train=train, test=test))
  grid = on_test["grid"]
  assert list(grid) == ["lr0.0001", "lr0.0003", "lr0.001", "lr0.003", "lr0.01"]
  assert on_test["chosen_on"] == "test"
  assert on_test["head"] == max(grid, key=grid.get)
  assert on_test["miou"] == grid[on_test["head"]]
  # Colours tell the four classes that there are, but for noise and coarse patches.
  assert on_test["miou"] > 0.3 and on_test["miou"] > grid["lr0.0001"] + 0.05
  assert on_test["iou"]["e"] in (None, 0.0)


def test_images_that_cannot_be_read_are_one_line(monkeypatch):
  train, broken = varied.Varied(8, 0), varied.Varied(2, 1, (0, 1))
  with pytest.raises(errors.UserError, match="is corrupt"):
    evaluate(dict(train=broken, test=train), steps=1)

  def untrained(reader, source, goal, **how):
    return jax.jit(lambda: pixel_heads.first_state(goal, how["width"], 0))()

  monkeypatch.setattr(pixel_heads, "fit", untrained)
  with pytest.raises(errors.UserError, match="no readable image has a labelled pixel"):
    evaluate(dict(train=train, test=broken))
