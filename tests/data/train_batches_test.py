"""The stream: one batch per (seed, step), whoever reads it and whatever is damaged."""

import contextlib
import io
import re

import numbered
import numpy as np
import pytest
from absl import flags
from array_record.python import array_record_module
from PIL import Image

from dinojax import errors, resolutions
from dinojax.data import (
  arrayrecord,
  bad_records,
  images,
  masking,
  mixture,
  sources,
  train_batches,
)

MASKS = dict(views=2, grid=4, ratio_min=0.1, ratio_max=0.5)


@pytest.fixture(autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # As every entry point does; Grain reads its own.


def tiny_crops(rng, image):
  """Keeps the colour in channel 0, and draws the other two."""
  noise = rng.integers(0, 256, (5, 2, 2, 3), np.uint8)
  noise[..., 0] = images.decode(image)[0, 0, 0]
  return {"global_crops": noise[:2], "local_crops": noise[2:, :1, :1]}


def larger_crops(rng, image):
  """The same of 3 and 2 pixels."""
  noise = rng.integers(0, 256, (5, 3, 3, 3), np.uint8)
  noise[..., 0] = images.decode(image)[0, 0, 0]
  return {"global_crops": noise[:2], "local_crops": noise[2:, :2, :2]}


ONE, OTHER = (
  train_batches.Row(tiny_crops, MASKS),
  train_batches.Row(larger_crops, MASKS | {"grid": 6}),
)
MIXED = [ONE._replace(share=0.5), OTHER._replace(share=0.5)]


def train(source, steps=3, **changes):
  """Returns the first batches of a run of 4 groups of 2 images."""
  arguments = dict(
    seed=0,
    batch_size=8,
    group_size=2,
    rows=[ONE],
    groups=range(4),
    workers=0,
    start_step=0,
  )
  data = mixture.Mixture([source], [1.0])
  stream = train_batches.stream(data, **(arguments | changes))
  with contextlib.closing(stream):
    return [next(stream) for _ in range(steps)]


def colours(batches):
  return np.concatenate([batch["global_crops"][:, 0, 0, 0, 0] for batch in batches])


def test_a_batch_keeps_the_contract():
  (batch,) = train(numbered.Numbers(20), steps=1, groups=(0, 2, 3))
  slots = masking.slots(group_size=2, **MASKS)
  assert {name: (value.shape, str(value.dtype)) for name, value in batch.items()} == {
    "global_crops": ((6, 2, 2, 2, 3), "uint8"),
    "local_crops": ((6, 3, 1, 1, 3), "uint8"),
    "mask": ((6, 2, 16), "bool"),
    "masked_indices": ((3, slots), "int32"),
    "masked_weights": ((3, slots), "float32"),
    "bad_records": ((6,), str(bad_records.REPORT)),
  }
  for i, mask in enumerate(batch["mask"].reshape(3, -1)):
    np.testing.assert_array_equal(batch["masked_indices"][i], np.flatnonzero(mask))
  assert (batch["bad_records"] == bad_records.report()).all()


def test_no_two_images_and_no_two_groups_share_random_numbers():
  batches = train(numbered.Numbers(20), steps=4)
  noise = np.concatenate([batch["global_crops"][..., 1:] for batch in batches])
  assert len(np.unique(noise.reshape(32, -1), axis=0)) == 32
  masks = np.concatenate([batch["mask"].reshape(4, -1) for batch in batches])
  assert len(np.unique(masks, axis=0)) == 16


@pytest.mark.parametrize("hosts", [[(0, 2), (3, 1)], [(3,), (1,), (0,), (2,)]])
def test_hosts_together_hold_the_batch_of_one_process(hosts):
  whole = train(numbered.Numbers(20))
  shares = {groups: train(numbered.Numbers(20), groups=groups) for groups in hosts}
  for step, batch in enumerate(whole):
    for groups, share in shares.items():
      for i, group in enumerate(groups):
        for name, value in batch.items():
          size = len(value) // 4
          np.testing.assert_array_equal(
            share[step][name][i * size : (i + 1) * size],
            value[group * size : (group + 1) * size],
          )


def test_a_restarted_stream_continues_bit_by_bit():
  source = numbered.Numbers(11, bad=(3,))
  numbered.assert_same(train(source, 3, start_step=4), train(source, 7)[4:])


def test_a_step_of_several_resolutions_is_that_of_a_run_of_its_row_alone():
  source = numbered.Numbers(11, bad=(3,))
  alone = [train(source, 12, rows=[row]) for row in (ONE, OTHER)]
  drawn = [resolutions.row_of(k, seed=0, shares=[0.5, 0.5]) for k in range(12)]
  assert {0, 1} == set(drawn[:6]) == set(drawn[6:])
  expected = [alone[row][step] for step, row in enumerate(drawn)]
  assert expected[drawn.index(1)]["mask"].shape == (8, 2, 36)
  numbered.assert_same(train(source, 12, rows=MIXED), expected)
  numbered.assert_same(train(source, 5, rows=MIXED, start_step=7), expected[7:])
  for groups in ((0, 1), (2,), (3,)):  # of three hosts
    images_held = [image for group in groups for image in (2 * group, 2 * group + 1)]
    share = train(source, 12, rows=MIXED, groups=groups)
    for batch, whole in zip(share, expected, strict=True):
      for name, value in batch.items():
        held = groups if name.startswith("masked_") else images_held
        np.testing.assert_array_equal(value, whole[name][list(held)])


@pytest.mark.process
def test_batches_do_not_depend_on_the_number_of_workers_at_any_resolution():
  source = numbered.Numbers(20, bad=(3, 7))
  found = train(source, 7, workers=2, rows=MIXED, start_step=2)
  numbered.assert_same(found, train(source, 9, rows=MIXED)[2:])


def test_another_seed_changes_order_crops_and_masks():
  (one,), (other,) = (
    train(numbered.Numbers(200), 1),
    train(numbered.Numbers(200), 1, seed=1),
  )
  for name in ("global_crops", "local_crops", "mask", "masked_indices"):
    assert (one[name] != other[name]).any()
  assert (colours([one]) != colours([other])).any()


def test_every_epoch_is_another_permutation():
  epochs = colours(train(numbered.Numbers(20), 10)).reshape(
    4, 20
  )  # Batches of 8 run across.
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(20), (4, 1)))
  assert len(np.unique(epochs, axis=0)) == 4


def test_a_source_smaller_than_the_batch_is_repeated_within_it():
  batch_colours = colours(train(numbered.Numbers(3), 3)).reshape(8, 3)
  np.testing.assert_array_equal(np.sort(batch_colours), np.tile(np.arange(3), (8, 1)))


def test_an_image_seen_again_is_cropped_anew():
  batches = train(numbered.Numbers(1), 2)
  noise = np.concatenate([batch["global_crops"] for batch in batches]).reshape(16, -1)
  assert len(np.unique(noise, axis=0)) == 16


def test_damaged_records_are_replaced_and_reported_in_place():
  bad = (2, 3, 5)
  damaged, whole = train(numbered.Numbers(10, bad), 5), train(numbered.Numbers(10), 5)
  for batch, intact in zip(damaged, whole, strict=True):
    wanted = colours([intact]).astype(int)
    is_bad = np.isin(wanted, bad)
    reports = batch["bad_records"]
    np.testing.assert_array_equal(reports["record"], np.where(is_bad, wanted, -1))
    assert set(reports["reason"][is_bad]) <= {b"damaged"}
    np.testing.assert_array_equal(colours([batch])[~is_bad], wanted[~is_bad])
    assert not np.isin(colours([batch]), bad).any()


def test_a_folder_with_damaged_and_odd_files_trains(tmp_path):
  for i, mode in enumerate(["RGB", "L", "CMYK", "P"]):
    kind = "png" if mode == "P" else "jpg"
    Image.new(mode, (9, 5), 7).save(tmp_path / f"{i}.{kind}")
  whole = (tmp_path / "0.jpg").read_bytes()
  (tmp_path / "4.jpg").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "5.webp").write_bytes(b"")
  source = sources.open_source(f"folder:{tmp_path}", field="config.data.source")
  batches = train(source, 3)
  bad = np.concatenate([batch["bad_records"]["record"] for batch in batches])
  assert sorted(bad.tolist()) == [-1] * 16 + [4] * 4 + [5] * 4


@pytest.mark.process
def test_a_source_of_nothing_but_damage_ends_the_run_with_the_users_error():
  # It arises in a worker process, and must arrive as what it is.
  with pytest.raises(errors.UserError, match=r'config.data.source="numbers": numbers'):
    train(numbered.Numbers(4, bad=range(4)), workers=1)


@pytest.fixture
def damaged_shards(tmp_path):
  """Four shards of 50 images, of which each 20th is damaged on disk."""
  for shard in range(4):
    path = tmp_path / f"{shard}.array_record"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for i in range(50):
      file = io.BytesIO()
      Image.new("RGB", (4, 3), (shard * 50 + i, 0, 0)).save(file, "PNG")
      writer.write(file.getvalue())
    writer.close()
    content = bytearray(path.read_bytes())
    begins = arrayrecord.record_offsets(str(path))
    for i in range(50):
      if (shard * 50 + i) % 20 == 7:
        content[(begins[i] + begins[i + 1]) // 2] ^= 255
    path.write_bytes(content)
  spec = f"arrayrecord:{tmp_path}/*.array_record"
  return sources.open_source(spec, field="config.data.sources[0]")


def test_with_5_percent_damaged_on_disk_training_goes_on_or_ends_as_was_asked(
  damaged_shards, caplog
):
  batches = train(damaged_shards, 50)  # two epochs
  bad = [i for i in range(200) if i % 20 == 7]
  good = sorted(set(range(200)) - set(bad))
  replaced = np.concatenate([batch["bad_records"]["record"] for batch in batches])
  assert sorted(replaced[replaced >= 0].tolist()) == sorted(bad * 2)
  seen = colours(batches)
  assert sorted(seen[replaced < 0].tolist()) == sorted(good * 2)
  assert set(seen[replaced >= 0].tolist()) <= set(good)
  monitor = bad_records.Monitor(damaged_shards, max_bad_share=0.05)
  for batch in batches:
    monitor.update(batch["bad_records"])
  assert sorted(line.split(": ")[1] for line in caplog.messages) == sorted(
    damaged_shards.name(i) for i in bad
  )
  assert all(re.search(r"#\d+: \w", line) for line in caplog.messages)
  monitor = bad_records.Monitor(damaged_shards, max_bad_share=0.01)
  with pytest.raises(errors.UserError, match=r"max_bad_share=0.01; repair") as raised:
    for batch in batches:
      monitor.update(batch["bad_records"])
  assert "\n" not in str(raised.value)
