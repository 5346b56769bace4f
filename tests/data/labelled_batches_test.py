"""Batches of labelled crops: a function of seed and step, whoever reads them."""

import numpy as np
import pytest
from absl import flags
from PIL import Image

from dinojax.data import dense_records, label_maps, labelled_batches, mixture, sources

BATCH = 8


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # Grain's


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """20 images of two classes; the first is damaged, "light" ones are above 128."""
  folder = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for name, low in (("dark", 0), ("light", 160)):
    (folder / name).mkdir()
    for i in range(10):
      pixels = rng.integers(low, low + 90, (24, 32, 3), np.uint8)
      Image.fromarray(pixels).save(folder / name / f"{i}.png")
  (folder / "dark" / "0.png").write_bytes(b"no image")
  source = sources.open_source(f"folder:{folder}", field="--train")
  return mixture.Mixture([source], [1.0])


def batches(data, *, rows=range(BATCH), start=0, count=4, seed=0, maps=None, **crop):
  kind = dict(size=16, min_area=0.3, flip_prob=0.5) | crop
  opened = labelled_batches.open_batches(
    data,
    seed=seed,
    batch_size=BATCH,
    rows=tuple(rows),
    kind=labelled_batches.random_crop(**kind),
    workers=0,
    start_step=start,
    maps=maps,
  )
  found = [next(opened) for _ in range(count)]
  opened.close()
  return found


def test_crops_have_their_images_label_and_size(data):
  for batch in batches(data):
    assert batch["image"].shape == (BATCH, 16, 16, 3)
    assert batch["image"].dtype == np.uint8
    light = batch["image"].mean((1, 2, 3)) > 128
    np.testing.assert_array_equal(batch["label"], light)


def test_a_batch_depends_on_seed_and_step_alone(data):
  whole = batches(data)
  later = batches(data, start=2, count=2)
  halves = [
    batches(data, rows=rows, count=1)[0] for rows in ((0, 2, 4, 6), (1, 3, 5, 7))
  ]
  for name in ("image", "label"):
    for one, other in zip(whole[2:], later, strict=True):
      np.testing.assert_array_equal(one[name], other[name])
    for i, half in enumerate(halves):
      np.testing.assert_array_equal(whole[0][name][i::2], half[name])
  assert (batches(data, count=1, seed=1)[0]["image"] != whole[0]["image"]).any()


def test_an_epoch_shows_each_image_once_and_the_next_crops_it_anew(data):
  first, *_, last = batches(data, count=5)  # two epochs of 20
  assert (first["image"] != last["image"]).any()
  reports = [batch["bad_records"]["record"] for batch in batches(data, count=5)]
  assert (np.concatenate(reports) >= 0).sum() == 2  # the damaged one, each time


def test_without_randomness_the_crop_is_the_image(data):
  (batch,) = batches(data, count=1, min_area=1.0, flip_prob=0.0)
  (again,) = batches(data, count=1, min_area=1.0, flip_prob=1.0)
  np.testing.assert_allclose(
    batch["image"].astype(int), again["image"][:, :, ::-1], atol=2
  )


CROP = labelled_batches.random_crop(size=16, min_area=0.3, flip_prob=0.5)


@pytest.mark.parametrize("factor", [1, 2])
def test_a_map_is_cropped_as_its_image_whatever_its_size(factor):
  rng = np.random.default_rng(0)
  classes = np.kron(rng.integers(0, 5, (3, 4)), np.ones((16, 16))).astype(np.uint8)
  image = np.repeat(50 * classes[..., None], 3, axis=2)
  label_map = classes[::factor, ::factor]
  record, maps = dict(image=image, label_map=label_map), dense_records.LabelMaps(5)
  for seed in range(20):
    rng = np.random.default_rng(seed)
    crop, square = labelled_batches.crop_pair(rng, record, CROP, maps)
    alone = labelled_batches.crop_image(np.random.default_rng(seed), image, CROP)
    np.testing.assert_array_equal(crop, alone)
    # Only borders, which are blurred, differ.
    assert (np.abs(crop[..., 0] / 50 - square) < 0.2).mean() > 0.75
    assert square.max() < 5


def test_shares_of_patches_come_with_crops_and_bad_maps_are_substituted(tmp_path):
  for folder in ("images", "maps"):
    (tmp_path / folder).mkdir()
  for i in range(BATCH):
    pixels = np.full((8, 8), i, np.uint8)
    pixels[:, 4:] = label_maps.IGNORE if i == 1 else i
    Image.fromarray(pixels).save(tmp_path / "maps" / f"{i}.png")
    Image.new("RGB", (8, 8), (30 * i,) * 3).save(tmp_path / "images" / f"{i}.png")
  spec = f"folder:{tmp_path}/images?masks={tmp_path}/maps"
  source = sources.open_source(spec, field="--train")
  maps = labelled_batches.Maps(num_classes=7, patch_size=8)  # 7 is beyond them
  whole = dict(min_area=1.0, flip_prob=0.0)
  (batch,) = batches(mixture.Mixture([source], [1.0]), count=1, maps=maps, **whole)
  assert batch["label"].shape == (BATCH, 4, 7)
  number = np.rint(batch["image"][:, 0, 0, 0] / 30).astype(int)
  assert 7 not in number
  assert (batch["bad_records"]["record"] >= 0).sum() == 1
  wanted = np.zeros((BATCH, 4, 7))
  for row, i in enumerate(number):
    wanted[row, :, i] = 1
    wanted[row, 1::2, i] = i != 1
  np.testing.assert_array_equal(batch["label"], wanted)
