"""Rows of crop sizes: which row a step has, a row's config, and mistakes in one."""

import numpy as np
import pytest

from dinojax import errors, preflight, resolutions
from dinojax.data import masking, train_batches
from experiments import vitg14, vitl16_highres

SHARES = [0.3, 0.3, 0.3, 0.05, 0.05]


def rows(steps, seed=0, shares=SHARES):
  return [resolutions.row_of(step, seed=seed, shares=shares) for step in steps]


def test_rows_come_as_often_as_their_shares_and_in_no_order():
  drawn = np.array(rows(range(4000)))
  counts = np.bincount(drawn, minlength=5)
  spread = np.sqrt(4000 * np.array(SHARES) * (1 - np.array(SHARES)))
  assert (abs(counts - 4000 * np.array(SHARES)) < 3.5 * spread).all()
  # Of independent draws, as many equal neighbours as the sum of squared shares.
  equal = (drawn[1:] == drawn[:-1]).mean()
  assert equal == pytest.approx(np.square(SHARES).sum(), abs=0.03)


def test_the_row_of_a_step_is_known_from_seed_and_step_alone():
  assert rows(range(50, 60)) == rows(range(60))[50:]
  assert rows(range(60)) != rows(range(60), seed=1)
  # A run that resumes under a later version must find the same rows.
  assert rows(range(12)) == [3, 2, 2, 1, 2, 0, 0, 1, 2, 1, 2, 0]


def test_rounding_of_the_shares_leaves_no_step_without_a_row():
  shares = [0.1] * 10  # sums to less than 1
  assert set(rows(range(300), shares=shares)) == set(range(10))
  assert set(rows(range(20), shares=[1.0])) == {0}


def test_without_rows_the_run_has_the_one_resolution_of_its_config():
  config = vitg14.get_config()
  (one,) = resolutions.configs(config)
  assert one is config
  assert resolutions.shares(config) == [1.0]


def test_a_row_is_a_config_of_its_own_that_passes_preflight():
  config = vitl16_highres.get_config()
  before = config.to_dict()
  found = resolutions.configs(config)
  sizes = []
  for row in found:
    preflight.check(row, devices=32)
    crops = row.augment
    assert crops.global1.size == crops.global2.size
    sizes.append((crops.global1.size, crops.local.size, row.gram.crop_size))
  assert sizes == [
    *((512, 112, 768), (768, 112, 1152), (768, 160, 1152)),
    *((768, 224, 1152), (768, 336, 1152)),
  ]
  assert resolutions.shares(config) == SHARES
  assert config.to_dict() == before
  assert resolutions.describe(config)[3] == (
    "0.05 of the steps: crops of 768 and 224, Gram of 1152 pixels"
  )


def test_batches_of_a_row_have_its_crops_and_the_masks_of_its_grid():
  config = vitl16_highres.get_config()
  for row, (size, local) in zip(
    resolutions.configs(config)[1:3], [(768, 112), (768, 160)], strict=True
  ):
    shapes = {k: x for k, (x, _) in train_batches.batch_shapes(row).items()}
    masks = dict(group_size=16, views=2, grid=48, **config.masking)
    slots = masking.slots(**masks)
    assert shapes == {
      "global_crops": (2048, 2, size, size, 3),
      "local_crops": (2048, 8, local, local, 3),
      "gram_crops": (2048, 2, 1152, 1152, 3),
      "mask": (2048, 2, 48**2),
      **{name: (128, slots) for name in ("masked_indices", "masked_weights")},
    }


def changed(changes):
  config = vitg14.get_config()
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  return config


def message(config):
  with pytest.raises(errors.UserError) as caught:
    preflight.check(config, devices=1)
  return str(caught.value)


ROW = dict(share=1.0, global_size=224, local_size=98, gram_size=0)


@pytest.mark.parametrize(
  "rows, text",
  [
    (
      [{"share": 1.0}],
      "config.resolutions[0]={'share': 1.0} must be a dict of share, global_size,"
      " local_size, gram_size: numbers, sizes in pixels",
    ),
    (
      [ROW | {"local_size": 98.0}],
      f"config.resolutions[0]={ROW | {'local_size': 98.0}} must be a dict of share,"
      " global_size, local_size, gram_size: numbers, sizes in pixels",
    ),
    (
      [ROW, ROW | {"share": 0}],
      "config.resolutions[1].share=0 must be within (0, 1]",
    ),
    (
      [ROW | {"local_size": 100}],
      "config.resolutions[0].local_size=100 must be a multiple of"
      " config.backbone.patch_size=14; try 112",
    ),
    (
      [ROW, ROW | {"global_size": 0}],
      "config.resolutions[1].global_size=0 must be a multiple of"
      " config.backbone.patch_size=14; try 14",
    ),
    (
      [ROW | {"gram_size": 336}],
      "config.resolutions[0].gram_size=336 must be 0, or a multiple of"
      " config.backbone.patch_size=14 from its global_size=224 on, with a"
      " config.gram.teacher; try 0",
    ),
    (
      [ROW | {"share": 0.5}, ROW | {"share": 0.4}],
      "config.resolutions: the rows' shares add up to 0.9, and must to 1",
    ),
    (
      [ROW | {"global_size": 448}],
      f"config.resolutions[0]={ROW | {'global_size': 448}} must have the sizes of"
      " config.augment and config.gram.crop_size, which previews show: {'global_size':"
      " 224, 'local_size': 98, 'gram_size': 0}",
    ),
  ],
)
def test_a_row_of_resolutions_that_cannot_be_is_refused(rows, text):
  assert message(changed({"resolutions": tuple(rows)})) == text


@pytest.mark.parametrize("size, way_out", [(210, 336), (340, 336)])
def test_gram_crops_of_a_row_are_at_least_its_global_crops(size, way_out):
  gram = {"gram.teacher": "x", "schedules.gram_weight.final": 2.0}
  rows = (ROW | {"share": 0.5}, ROW | {"share": 0.5, "gram_size": size})
  config = changed({**gram, "resolutions": rows})
  text = message(config)
  assert text.startswith(f"config.resolutions[1].gram_size={size} must be 0, or a")
  assert text.endswith(f"; try {way_out}")
  rows[1]["gram_size"] = way_out
  config.resolutions = rows
  preflight.check(config, devices=1)
