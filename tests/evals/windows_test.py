"""Sliding windows agree with PyTorch's resizing, window by window, on any mesh."""

import blocks
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import varied
from absl import flags
from PIL import Image

from dinojax import errors
from dinojax.data import dense_records, window_batches
from dinojax.evals import depth, segmentation, windows

SIDE, GRID, CLASSES = blocks.SIDE, blocks.GRID, blocks.CLASSES
WEIGHTS = np.random.default_rng(8).normal(size=(2, 12, CLASSES))  # of two heads


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # Grain's


def positive(state, x):
  return jnp.abs(predict(state, x))


def predict(state, x):
  return jnp.einsum("bnd,hdc->bnhc", x, state, precision="highest")


def by_torch(record, weights, then=np.asarray):
  """Values [C, h, w] of a record, at the size of its map; then: of those of patches."""
  pixels, (h, w) = record["image"], record["label_map"].shape
  height, width = pixels.shape[:2]
  length = round(max(height, width) * SIDE / min(height, width))
  tall, start, found = height > width, 0, []
  size = (length, SIDE) if tall else (SIDE, length)
  total, count = torch.zeros((weights.shape[1], *size)), torch.zeros(size)
  while True:
    start = min(start, length - SIDE)
    box = [0, 0, width, height]
    box[tall], box[2 + tall] = (
      x * max(height, width) / length for x in (start, start + SIDE)
    )
    window = Image.fromarray(pixels).resize((SIDE, SIDE), Image.BICUBIC, tuple(box))
    tokens = blocks.tokens(blocks.PROJECTION.astype(np.float32), np.array(window)[None])
    values = torch.tensor(then(np.asarray(tokens[0]) @ weights)).T
    values = values.reshape(1, -1, GRID, GRID)
    values = F.interpolate(values, (SIDE, SIDE), mode="bilinear")[0]
    span = slice(start, start + SIDE)
    place = (span, slice(None)) if tall else (slice(None), span)
    total[:, *place] += values
    count[place] += 1
    found.append(start)
    if start == length - SIDE:
      break
    start += SIDE * 2 // 3
  return F.interpolate((total / count)[None], (h, w), mode="bilinear")[0].numpy(), found


def test_confusion_at_the_maps_own_size_equals_pytorchs_on_eight_devices():
  source, total = varied.Varied(11, 3, broken=(5,)), 0
  for sums in windows.evaluate(
    blocks.reader((2, 4)),
    source,
    dense_records.LabelMaps(CLASSES),
    predict,
    WEIGHTS.astype(np.float32),
    segmentation.count_pixels,
    description="",
  ):
    total = total + sums.sum(0)
  wanted, counts = np.zeros((2, CLASSES, CLASSES), int), set()
  for index in set(range(11)) - {5}:
    for head in range(2):
      values, starts = by_torch(source[index], WEIGHTS[head])
      true = source[index]["label_map"]
      known = true < CLASSES
      np.add.at(wanted[head], (true[known], values.argmax(0)[known]), 1)
      counts.add(len(starts))
  assert counts == {1, 2, 3, 4}
  # Of some 20,000 pixels a few have two classes of nearly the same value.
  assert np.abs(total - wanted).sum() <= 6 and wanted.sum() > 30_000


def test_windows_cover_an_image_and_the_last_one_ends_it():
  for length in range(512, 3_000, 7):
    starts = window_batches.starts(length, 512)
    assert starts[0] == 0 and starts[-1] == length - 512
    assert (np.diff(starts) <= 341).all() and (np.diff(starts) > 0).all()
  assert len(window_batches.starts(512, 512)) == 1


def test_errors_of_depth_equal_float64_image_by_image_on_one_device():
  goal = depth.Metres(1.5, 10.0)
  source = varied.Varied(11, 3, broken=(5,), sizes=varied.SIZES[:3])
  scale = np.abs(WEIGHTS[:, :, :1]).astype(np.float32)
  for crop in ("none", "eigen"):
    found = list(
      windows.evaluate(
        blocks.reader((1, 1)),
        source,
        dense_records.DepthMaps(1.5, 10.0, crop),
        positive,
        scale,
        goal.errors,
        description="",
      )
    )
    errors_found = depth.mean_errors(np.concatenate(found), source)
    wanted = []
    for index in set(range(11)) - {5}:
      record = source[index]
      of_image = []
      for head in range(2):
        values, _ = by_torch(record, scale[head], np.abs)
        true = record["depth_map"].astype(np.float64)
        known = true >= 1.5
        if crop == "eigen":
          rows = [round(x * true.shape[0] / 480) for x in (45, 471)]
          columns = [round(x * true.shape[1] / 640) for x in (41, 601)]
          inside = np.zeros_like(known)
          inside[slice(*rows), slice(*columns)] = True
          known &= inside
        a, b = np.clip(values[0], 1.5, 10)[known], true[known]
        ratio = np.maximum(a / b, b / a)
        of_image.append(
          [
            np.sqrt(((a - b) ** 2).mean()),
            (np.abs(a - b) / b).mean(),
            (ratio < 1.25).mean(),
          ]
        )
      wanted.append(of_image)
    np.testing.assert_allclose(errors_found, np.mean(wanted, 0), rtol=1e-3, atol=2e-4)
    assert 0.05 < errors_found[:, 2].min() < 0.9


def test_no_known_depth_is_one_line():
  with pytest.raises(
    errors.UserError, match="no readable image has a pixel of known d"
  ):
    depth.mean_errors(np.zeros((3, 2, 4)), varied.Varied(3, 0))
