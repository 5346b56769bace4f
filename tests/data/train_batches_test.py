"""The stream: one batch per (seed, step), whoever reads it and whatever is damaged."""

import contextlib
import dataclasses
import io
import logging

import numpy as np
import pytest
from absl import flags
from array_record.python import array_record_module
from PIL import Image

from dinojax import errors
from dinojax.data import arrayrecord, images, masking, mixture, pipeline, sources

MASKS = dict(views=2, grid=4, ratio_min=0.1, ratio_max=0.5)


@pytest.fixture(autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # As every entry point does; Grain reads its own.


@dataclasses.dataclass
class Numbers:
  """Image i is 3 x 4 pixels of colour i; those in `bad` are unreadable."""

  length: int
  bad: tuple = ()
  where = 'config.data.source="numbers"'
  class_names = tuple("01234")

  def __len__(self):
    return self.length

  def __getitem__(self, index):
    if index in self.bad:
      raise ValueError("damaged")
    return {"image": np.full((3, 4, 3), index, np.uint8), "label": index % 5}

  def name(self, index):
    return f"numbers#{index}"


def tiny_crops(rng, image):
  """Keeps the colour in channel 0, and draws the other two."""
  noise = rng.integers(0, 256, (5, 2, 2, 3), np.uint8)
  noise[..., 0] = images.decode(image)[0, 0, 0]
  return {"global_crops": noise[:2], "local_crops": noise[2:, :1, :1]}


def train(source, steps=3, **changes):
  """Returns the first batches of a run of 4 groups of 2 images."""
  arguments = dict(
    seed=0,
    batch_size=8,
    group_size=2,
    multi_crop=tiny_crops,
    masks=MASKS,
    groups=range(4),
    workers=0,
    start_step=0,
  )
  data = mixture.Mixture([source], [1.0])
  stream = pipeline.train_batches(data, **(arguments | changes))
  with contextlib.closing(stream):
    return [next(stream) for _ in range(steps)]


def assert_same(batches, expected):
  assert len(batches) == len(expected)
  for batch, other in zip(batches, expected, strict=True):
    assert batch.keys() == other.keys()
    for name in batch:
      assert batch[name].dtype == other[name].dtype
      np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def colours(batches):
  return np.concatenate([batch["global_crops"][:, 0, 0, 0, 0] for batch in batches])


def test_a_batch_keeps_the_contract():
  (batch,) = train(Numbers(20), steps=1, groups=(0, 2, 3))
  slots = masking.slots(group_size=2, **MASKS)
  assert {name: (value.shape, str(value.dtype)) for name, value in batch.items()} == {
    "global_crops": ((6, 2, 2, 2, 3), "uint8"),
    "local_crops": ((6, 3, 1, 1, 3), "uint8"),
    "mask": ((6, 2, 16), "bool"),
    "masked_indices": ((3, slots), "int32"),
    "masked_weights": ((3, slots), "float32"),
    "bad_records": ((6,), "int64"),
  }
  for i, mask in enumerate(batch["mask"].reshape(3, -1)):
    np.testing.assert_array_equal(batch["masked_indices"][i], np.flatnonzero(mask))
  assert (batch["bad_records"] == -1).all()


def test_no_two_images_and_no_two_groups_share_random_numbers():
  batches = train(Numbers(20), steps=4)
  noise = np.concatenate([batch["global_crops"][..., 1:] for batch in batches])
  assert len(np.unique(noise.reshape(32, -1), axis=0)) == 32
  masks = np.concatenate([batch["mask"].reshape(4, -1) for batch in batches])
  assert len(np.unique(masks, axis=0)) == 16


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(workers):
  source = Numbers(20, bad=(3, 7))
  assert_same(train(source, 5, workers=workers), train(source, 5))


@pytest.mark.parametrize(
  "hosts",
  [[(0, 1), (2, 3)], [(0, 2), (1, 3)], [(3,), (1,), (0,), (2,)], [(3, 0, 2, 1)]],
)
def test_hosts_together_hold_the_batch_of_one_process(hosts):
  whole = train(Numbers(20))
  shares = {groups: train(Numbers(20), groups=groups) for groups in hosts}
  for step, batch in enumerate(whole):
    for groups, share in shares.items():
      for i, group in enumerate(groups):
        for name, value in batch.items():
          size = len(value) // 4
          np.testing.assert_array_equal(
            share[step][name][i * size : (i + 1) * size],
            value[group * size : (group + 1) * size],
          )


@pytest.mark.parametrize("start_step", [1, 4])
def test_a_restarted_stream_continues_bit_by_bit(start_step):
  source = Numbers(11, bad=(3,))
  whole = train(source, 7)
  assert_same(train(source, 7 - start_step, start_step=start_step), whole[start_step:])


def test_another_seed_changes_order_crops_and_masks():
  (one,), (other,) = train(Numbers(200), 1), train(Numbers(200), 1, seed=1)
  for name in ("global_crops", "local_crops", "mask", "masked_indices"):
    assert (one[name] != other[name]).any()
  assert (colours([one]) != colours([other])).any()


def test_every_epoch_is_another_permutation():
  epochs = colours(train(Numbers(20), 10)).reshape(4, 20)  # Batches of 8 run across.
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(20), (4, 1)))
  assert len(np.unique(epochs, axis=0)) == 4


def test_a_source_smaller_than_the_batch_is_repeated_within_it():
  batch_colours = colours(train(Numbers(3), 3)).reshape(8, 3)
  np.testing.assert_array_equal(np.sort(batch_colours), np.tile(np.arange(3), (8, 1)))


def test_an_image_seen_again_is_cropped_anew():
  batches = train(Numbers(1), 2)
  noise = np.concatenate([batch["global_crops"] for batch in batches]).reshape(16, -1)
  assert len(np.unique(noise, axis=0)) == 16


def test_damaged_records_are_replaced_and_reported_in_place():
  bad = (2, 3, 5)
  damaged, whole = train(Numbers(10, bad), 5), train(Numbers(10), 5)
  for batch, intact in zip(damaged, whole, strict=True):
    wanted = colours([intact]).astype(int)
    is_bad = np.isin(wanted, bad)
    np.testing.assert_array_equal(batch["bad_records"], np.where(is_bad, wanted, -1))
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
  bad = np.concatenate([batch["bad_records"] for batch in batches])
  assert sorted(bad.tolist()) == [-1] * 16 + [4] * 4 + [5] * 4


def test_a_source_of_nothing_but_damage_ends_the_run_with_the_users_error():
  # It arises in a worker process, and must arrive as what it is.
  with pytest.raises(errors.UserError, match=r'config.data.source="numbers": numbers'):
    train(Numbers(4, bad=range(4)), workers=1)


def evaluate(source, **changes):
  arguments = dict(batch_size=8, rows=range(8), resize=3, crop=2, workers=0)
  return list(pipeline.eval_batches(source, **(arguments | changes)))


def test_evaluation_reads_once_in_order_and_pads_the_last_batch():
  batches = evaluate(Numbers(20))
  rows = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
  assert rows["image"].shape == (24, 2, 2, 3)
  assert rows["image"].dtype == np.uint8
  assert rows["label"].dtype == rows["index"].dtype == np.int32
  assert rows["valid"].tolist() == [True] * 20 + [False] * 4
  assert rows["index"].tolist() == [*range(20)] + [-1] * 4
  assert rows["label"].tolist() == [*np.arange(20) % 5] + [-1] * 4
  assert rows["image"][:20, 0, 0, 0].tolist() == [*range(20)]


def test_evaluation_does_not_depend_on_hosts_or_workers():
  whole = evaluate(Numbers(20))
  assert_same(evaluate(Numbers(20), workers=1), whole)
  for rows in [(0, 1, 2, 3), (5, 4), (7, 0)]:
    share = evaluate(Numbers(20), rows=rows)
    picked = [{name: b[name][list(rows)] for name in b} for b in whole]
    assert_same(share, picked)


def test_evaluation_reads_the_spans_asked_for_and_pads_each():
  batches = evaluate(Numbers(40), spans=[(3, 14), (30, 38), (38, 40)])
  assert [b["index"].tolist() for b in batches] == [
    [*range(3, 11)],
    [11, 12, 13] + [-1] * 5,
    [*range(30, 38)],
    [38, 39] + [-1] * 6,
  ]
  for batch in batches:
    assert batch["valid"].tolist() == (batch["index"] >= 0).tolist()
    read = batch["image"][batch["valid"], 0, 0, 0]
    assert read.tolist() == batch["index"][batch["valid"]].tolist()


def test_evaluation_leaves_damaged_records_out():
  (batch,) = evaluate(Numbers(6, bad=(1, 4)))
  assert batch["valid"].tolist() == [True, False, True, True, False, True, False, False]
  assert batch["bad_records"].tolist() == [-1, 1, -1, -1, 4, -1, -1, -1]


def test_the_evaluation_crop_is_the_centre_of_the_resized_image():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (64, 96, 3), np.uint8)
  # Pillow in two steps: shorter side 64 -> 32, then the central 16 x 16.
  resized = Image.fromarray(image).resize((48, 32), Image.Resampling.BICUBIC)
  expected = np.asarray(resized)[8:24, 16:32]
  np.testing.assert_array_equal(pipeline._centre_crop(image, 32, 16), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5_000), (2_000, 3), (300, 299)])
def test_images_of_any_shape_can_be_evaluated(shape):
  image = np.full((*shape, 3), 9, np.uint8)
  crop = pipeline._centre_crop(image, 256, 224)
  assert crop.shape == (224, 224, 3)
  assert (crop == 9).all()


def test_a_crop_larger_than_the_resized_image_is_the_users_error():
  with pytest.raises(errors.UserError, match="crop=4 must be at most resize=3"):
    evaluate(Numbers(4), crop=4)


def bad_batch(size, *bad):
  return np.array([*bad] + [-1] * (size - len(bad)))


def test_a_bad_record_is_named_once(caplog):
  records = pipeline.BadRecords(Numbers(100), max_bad_share=0.01)
  with caplog.at_level(logging.WARNING):
    records.update(bad_batch(64, 5, 3))
    records.update(bad_batch(64, 3))
  assert caplog.messages == [
    "unreadable record numbers#3 replaced",
    "unreadable record numbers#5 replaced",
  ]
  assert (records.bad, records.seen) == (3, 128)


def test_a_single_bad_record_never_ends_a_run():
  for share in (0.0, 0.0001, 0.5):
    records = pipeline.BadRecords(Numbers(9), max_bad_share=share)
    records.update(bad_batch(2, 1))
    assert (records.bad, records.seen) == (1, 2)


def test_too_large_a_share_of_bad_records_ends_the_run():
  records = pipeline.BadRecords(Numbers(9_999), max_bad_share=0.01)
  for step in range(20):  # 1% of 2,000 records is allowed.
    records.update(bad_batch(100, step))
  with pytest.raises(errors.UserError, match=r"config.data.max_bad_share=0.01") as e:
    records.update(bad_batch(2, 30, 31))
  assert str(e.value).startswith("22 of 2002 records are unreadable")
  assert "\n" not in str(e.value)


def test_a_lost_shard_is_told_of_in_a_few_lines_and_named_in_full_on_request(caplog):
  records = pipeline.BadRecords(Numbers(9_999), max_bad_share=0.5)
  with caplog.at_level(logging.INFO):
    for first in range(0, 1000, 50):
      records.update(bad_batch(200, *range(first, first + 50)))
      records.update(bad_batch(200, *range(first, first + 50)))
  names = [x.getMessage() for x in caplog.records if "replaced" in x.getMessage()]
  assert names == [f"unreadable record numbers#{i} replaced" for i in range(1000)]
  warnings = [x.getMessage() for x in caplog.records if x.levelno >= logging.WARNING]
  assert warnings[:20] == names[:20]
  assert [int(line.split()[0]) for line in warnings[20:]] == [20, 40, 80, 160, 320, 640]
  assert all("--verbosity=0 names all" in line for line in warnings[20:])


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
  replaced = np.concatenate([batch["bad_records"] for batch in batches])
  assert sorted(replaced[replaced >= 0].tolist()) == sorted(bad * 2)
  seen = colours(batches)
  assert sorted(seen[replaced < 0].tolist()) == sorted(good * 2)
  assert set(seen[replaced >= 0].tolist()) <= set(good)
  records = pipeline.BadRecords(damaged_shards, max_bad_share=0.05)
  for batch in batches:
    records.update(batch["bad_records"])
  assert sorted(caplog.messages) == sorted(
    f"unreadable record {damaged_shards.name(i)} replaced" for i in bad
  )
  records = pipeline.BadRecords(damaged_shards, max_bad_share=0.01)
  with pytest.raises(errors.UserError, match=r"max_bad_share=0.01; repair") as raised:
    for batch in batches:
      records.update(batch["bad_records"])
  assert "\n" not in str(raised.value)


def test_a_few_bad_records_at_the_start_are_no_share_yet():
  records = pipeline.BadRecords(Numbers(9_999), max_bad_share=0.01)
  records.update(bad_batch(16, *range(10)))
  with pytest.raises(errors.UserError):
    records.update(bad_batch(16, 11))
