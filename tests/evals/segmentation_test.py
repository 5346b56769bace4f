"""Segmentation by nearest patches agrees with brute force in float64, on any mesh."""

import blocks
import jax
import numpy as np
import pytest
from absl import flags

from dinojax import errors, sharding
from dinojax.data import label_maps
from dinojax.evals import patches, segmentation

K, TEMPERATURE = 7, 0.1
CLASSES, GRID, NAMES, PATCH, SIDE = (
  blocks.CLASSES,
  blocks.GRID,
  blocks.NAMES,
  blocks.PATCH,
  blocks.SIDE,
)


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # Grain's


def segment(train, test, *, k=K, **changes):
  reader = blocks.reader((2, 4), **changes)
  settings = dict(num_classes=CLASSES, most=10_000, seed=0, description="")
  return segmentation.knn_segmentation(
    reader,
    patches.remember(reader, train, **settings),
    test,
    class_names=NAMES,
    k=k,
    temperature=TEMPERATURE,
  )


def bilinear(values, side):
  """[n, n, C] -> [side, side, C], pixel by pixel, by the centres of pixels."""
  n = len(values)
  at = np.clip((np.arange(side) + 0.5) * n / side - 0.5, 0, n - 1)
  low = np.minimum(at.astype(int), n - 2)
  share = (at - low)[:, None]
  rows = (1 - share)[..., None] * values[low] + share[..., None] * values[low + 1]
  return (1 - share) * rows[:, low] + share * rows[:, low + 1]


def oracle(train, test):
  """The protocol in float64, one patch and one image at a time."""

  def features(image):
    x = image.reshape(GRID, PATCH, GRID, PATCH, 3).transpose(0, 2, 1, 3, 4)
    x = (x.reshape(GRID**2, -1) / 255 - 0.4) @ blocks.PROJECTION
    return x / np.linalg.norm(x, axis=1, keepdims=True)

  bank, soft = [], []
  for i in set(range(len(train))) - set(train.broken):
    of_image = features(train[i]["image"])
    for n in range(GRID**2):
      row, column = n // GRID * PATCH, n % GRID * PATCH
      pixels = train.map(i)[row : row + PATCH, column : column + PATCH]
      pixels = pixels[pixels != label_maps.IGNORE]
      if len(pixels):
        bank.append(of_image[n])
        soft.append([(pixels == c).mean() for c in range(CLASSES)])
  bank, soft = np.array(bank), np.array(soft)
  pixels = []
  for i in set(range(len(test))) - set(test.broken):
    votes = []
    for query in features(test[i]["image"]):
      cosine = bank @ query
      nearest = np.argsort(-cosine)[:K]
      weights = np.exp(cosine[nearest] / TEMPERATURE)
      votes.append(weights @ soft[nearest] / weights.sum())
    votes = bilinear(np.array(votes).reshape(GRID, GRID, CLASSES), SIDE)
    pixels += [
      (a, b) for a, b in zip(test.map(i).flat, votes.argmax(-1).flat, strict=True)
    ]
  true, found = np.array([x for x in pixels if x[0] != label_maps.IGNORE]).T
  ious = {}
  for c, name in enumerate(NAMES):
    either = ((true == c) | (found == c)).sum()
    ious[name] = ((true == c) & (found == c)).sum() / either if either else None
  known = [iou for iou in ious.values() if iou is not None]
  return {
    "knn_segmentation_miou": np.mean(known),
    "knn_segmentation_accuracy": np.mean(true == found),
    "knn_segmentation_patches": len(bank),
    "knn_segmentation_iou": ious,
  }


def test_iou_equals_brute_force_in_float64():
  train, test = blocks.Blocks(21, 0, broken=(2, 9)), blocks.Blocks(11, 1, broken=(0,))
  wanted = oracle(train, test)
  result = segment(train, test)
  ious = result.pop("knn_segmentation_iou")
  assert ious == pytest.approx(wanted.pop("knn_segmentation_iou"), abs=1e-12)
  assert result == pytest.approx(wanted, abs=1e-12)
  assert 0.2 < result["knn_segmentation_miou"] < 0.9  # can be got wrong
  assert ious["e"] is None


def test_a_bounded_memory_is_the_same_on_any_mesh_and_changes_with_the_seed():
  one, eight, other = (
    jax.device_get(blocks.remember(most=65, shape=shape, seed=seed))
    for shape, seed in (((1, 1), 0), ((2, 4), 0), ((2, 4), 1))
  )
  for a, b in zip(*map(jax.tree.leaves, (one, eight)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
    assert a.shape[1] == 8 * 3  # of 21 images, 65 // 21 patches each
  assert not np.array_equal(one.shares, other.shares)


def test_rows_of_the_memory_are_patches_and_shares_of_the_image_that_they_are_of():
  train, memory = blocks.Blocks(21, 0), blocks.remember(most=65, broken=(4,))
  rows = np.asarray(memory.bank.features).reshape(-1, 3, 12)  # 3 of each image
  shares = np.asarray(memory.shares).reshape(-1, 3, CLASSES)
  kept = np.asarray(memory.bank.labels).reshape(-1, 3) >= 0
  assert kept.sum(1).tolist() == [3 * (i < 21 and i != 4) for i in range(24)]
  np.testing.assert_allclose(shares.sum(-1), kept, atol=1e-6)
  for i in (0, 8, 20):
    own = np.asarray(
      blocks.tokens(blocks.PROJECTION.astype(np.float32), train[i]["image"][None])
    )[0]
    counts = label_maps.patch_counts(train.map(i), patch_size=4, num_classes=CLASSES)
    for row, share in zip(rows[i], shares[i], strict=True):
      n = int(np.abs(own - row).sum(1).argmin())
      np.testing.assert_allclose(row, own[n], rtol=1e-5)
      np.testing.assert_allclose(share, counts[n] / counts[n].sum(), rtol=1e-6)


def test_iou_by_hand_counts_neither_absent_classes_nor_pixels_to_ignore():
  confusion = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
  found = segmentation.intersection_over_union(confusion)
  np.testing.assert_allclose(found, [3 / 6, 2 / 5, np.nan])


def test_many_neighbours_of_many_classes_make_small_batches():
  # ADE20K at 512 pixels, patches of 16: 18 MB an image.
  assert segmentation.most_images(1024, k=30, num_classes=150) == 29
  assert segmentation.most_images(10**6, k=10**3, num_classes=255) == 1


class Ignored(blocks.Blocks):
  def map(self, index):
    return np.full((SIDE, SIDE), label_maps.IGNORE, np.uint8)


def overflowing(params, images):
  return blocks.tokens(params, images) * np.inf


@pytest.mark.parametrize(
  ("train", "test", "changes", "message"),
  [
    (
      blocks.Blocks(1, 0),
      blocks.Blocks(1, 1),
      dict(k=17),
      "--segmentation_k=17 asks for more neigh",
    ),
    (
      Ignored(2, 0),
      blocks.Blocks(1, 1),
      {},
      "--train has labelled patches, 0; lower it",
    ),
    (
      blocks.Blocks(21, 0),
      Ignored(1, 1),
      {},
      '--test="blocks": no readable image has a label',
    ),
    (
      blocks.Blocks(21, 0),
      blocks.Blocks(1, 1, broken=(0,)),
      {},
      "no readable image has a labelled",
    ),
    (
      blocks.Blocks(9, 0),
      blocks.Blocks(9, 1),
      dict(apply=overflowing),
      "patch features are not finite, the first ones blocks#0's; check the weights",
    ),
  ],
)
def test_what_gives_no_number_is_one_line(train, test, changes, message):
  with pytest.raises(errors.UserError) as raised:
    segment(train, test, **changes)
  assert message in str(raised.value)


def test_patches_of_test_that_are_not_finite_are_named_too():
  memory = blocks.remember(most=10_000)
  x = np.ones((8, GRID**2, 12), np.float32)
  x[5, 3, 2] = np.nan
  maps = np.zeros((8, SIDE, SIDE), np.uint8)
  mesh = blocks.reader().mesh
  batch = jax.device_put((x, maps), sharding.batch_sharding(mesh))
  predict = segmentation.Votes(K, TEMPERATURE, mesh)
  _, bad = segmentation.count(memory, *batch, predict=predict, mesh=mesh)
  assert np.flatnonzero(bad).tolist() == [5]
