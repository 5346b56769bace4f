"""Evaluation reads each record once and in order, on any hosts and workers."""

import dataclasses
import io
import tarfile

import numbered
import numpy as np
import pyarrow
import pytest
from absl import flags
from array_record.python import array_record_module
from PIL import Image
from pyarrow import parquet
from tensorflow_datasets.proto import tf_example_pb2

from dinojax import errors
from dinojax.data import eval_batches, sources


@pytest.fixture(autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # As every entry point does; Grain reads its own.


def evaluate(source, **changes):
  arguments = dict(batch_size=8, rows=range(8), resize=3, crop=2, workers=0)
  return list(eval_batches.open_batches(source, **(arguments | changes)))


def test_evaluation_reads_once_in_order_and_pads_the_last_batch():
  batches = evaluate(numbered.Numbers(20))
  rows = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
  assert rows["image"].shape == (24, 2, 2, 3)
  assert rows["image"].dtype == np.uint8
  assert rows["label"].dtype == rows["index"].dtype == np.int32
  assert rows["valid"].tolist() == [True] * 20 + [False] * 4
  assert rows["index"].tolist() == [*range(20)] + [-1] * 4
  assert rows["label"].tolist() == [*np.arange(20) % 5] + [-1] * 4
  assert rows["image"][:20, 0, 0, 0].tolist() == [*range(20)]


@pytest.mark.process
def test_evaluation_does_not_depend_on_hosts_or_workers():
  whole = evaluate(numbered.Numbers(20))
  numbered.assert_same(evaluate(numbered.Numbers(20), workers=1), whole)
  for rows in [(0, 1, 2, 3), (5, 4), (7, 0)]:
    share = evaluate(numbered.Numbers(20), rows=rows)
    picked = [{name: b[name][list(rows)] for name in b} for b in whole]
    numbered.assert_same(share, picked)


def test_evaluation_reads_the_spans_asked_for_and_pads_each():
  batches = evaluate(numbered.Numbers(40), spans=[(3, 14), (30, 38), (38, 40)])
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


def test_labels_that_no_class_can_have_are_none():
  @dataclasses.dataclass
  class Identified(numbered.Numbers):
    def __getitem__(self, index):
      labels = [0, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), -1]
      return super().__getitem__(index) | {"label": labels[index]}

  (batch,) = evaluate(Identified(6))
  assert batch["label"].tolist() == [0, 2**31 - 1] + [-1] * 6


def test_evaluation_leaves_damaged_records_out():
  (batch,) = evaluate(numbered.Numbers(6, bad=(1, 4)))
  assert batch["valid"].tolist() == [True, False, True, True, False, True, False, False]
  reports = batch["bad_records"]
  assert reports["record"].tolist() == [-1, 1, -1, -1, 4, -1, -1, -1]
  assert reports["reason"][[1, 4]].tolist() == [b"damaged"] * 2


def test_the_evaluation_crop_is_the_centre_of_the_resized_image():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (64, 96, 3), np.uint8)
  # Pillow in two steps: shorter side 64 -> 32, then the central 16 x 16.
  resized = Image.fromarray(image).resize((48, 32), Image.Resampling.BICUBIC)
  expected = np.asarray(resized)[8:24, 16:32]
  np.testing.assert_array_equal(eval_batches._centre_crop(image, 32, 16), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5_000), (2_000, 3), (300, 299)])
def test_images_of_any_shape_can_be_evaluated(shape):
  image = np.full((*shape, 3), 9, np.uint8)
  crop = eval_batches._centre_crop(image, 256, 224)
  assert crop.shape == (224, 224, 3)
  assert (crop == 9).all()


def test_a_crop_larger_than_the_resized_image_is_the_users_error():
  with pytest.raises(errors.UserError, match="crop=4 must be at most resize=3"):
    evaluate(numbered.Numbers(4), crop=4)


class Encoded(numbered.Numbers):
  """The same images as PNG."""

  def __getitem__(self, index):
    record = super().__getitem__(index)
    file = io.BytesIO()
    Image.fromarray(record["image"]).save(file, "PNG")
    return record | {"image": file.getvalue()}


def test_the_limit_of_pixels_can_be_changed_and_is_named():
  (batch,) = evaluate(Encoded(2), max_pixels=12)
  assert batch["valid"][:2].all()
  (batch,) = evaluate(Encoded(2), max_pixels=11)
  assert not batch["valid"].any()
  assert b"the limit of max_pixels=11" in batch["bad_records"]["reason"][0]


def folder_source(root):
  for name in ("ant", "bee"):
    (root / name).mkdir(parents=True)
    for i in range(4):
      Image.new("RGB", (4, 4)).save(root / name / f"{i}.png")
  return sources.open_source(f"folder:{root}", field="--images")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.process)])
@pytest.mark.parametrize("away", ["set", "set/bee"])
def test_data_that_were_taken_away_end_the_command_to_be_restarted(
  tmp_path, away, workers
):
  source = folder_source(tmp_path / "set")
  (tmp_path / away).rename(tmp_path / "away")
  with pytest.raises(errors.TemporaryError) as raised:
    evaluate(source, workers=workers)
  assert str(raised.value).startswith(f"{source.where} is out of reach (")
  assert str(raised.value).endswith("restart the same command")


def test_a_folder_where_nothing_is_mounted_any_more_is_out_of_reach(tmp_path):
  (tmp_path / "set").mkdir()
  Image.new("RGB", (4, 4)).save(tmp_path / "set" / "0.png")
  source = sources.open_source(f"folder:{tmp_path}/set", field="--images")
  (tmp_path / "set" / "0.png").unlink()
  with pytest.raises(errors.TemporaryError):
    evaluate(source)


def test_shards_that_were_taken_away_are_out_of_reach(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  path, image = tmp_path / "a.tar", io.BytesIO()
  Image.new("RGB", (4, 4)).save(image, "PNG")
  with tarfile.open(path, "w") as tar:
    info = tarfile.TarInfo("0.png")
    info.size = len(image.getvalue())
    tar.addfile(info, io.BytesIO(image.getvalue()))
  source = sources.open_source(f"tar:{path}", field="--images")
  path.unlink()
  with pytest.raises(errors.TemporaryError, match="was removed since the run began"):
    evaluate(source)


def test_a_file_that_is_missing_alone_is_a_corrupt_record_with_its_label(tmp_path):
  source = folder_source(tmp_path / "set")
  (tmp_path / "set" / "bee" / "2.png").unlink()
  (batch,) = evaluate(source)
  assert np.flatnonzero(~batch["valid"]).tolist() == [6]
  assert batch["label"].tolist() == [0] * 4 + [1] * 4


def test_a_record_without_an_image_keeps_its_label(tmp_path):
  example = tf_example_pb2.Example()
  example.features.feature["label"].int64_list.value.append(1)
  shard = str(tmp_path / "0.array_record")
  writer = array_record_module.ArrayRecordWriter(shard, "group_size:1")
  writer.write(example.SerializeToString())
  writer.close()
  (tmp_path / "label.labels.txt").write_text("ant\nbee\n")
  columns = {"image": pyarrow.array([None], pyarrow.binary()), "label": [1]}
  parquet.write_table(pyarrow.table(columns), tmp_path / "0.parquet")
  for spec in (f"arrayrecord:{shard}", f"parquet:{tmp_path}/0.parquet"):
    (batch,) = evaluate(sources.open_source(spec, field="--images"))
    assert (batch["label"][0], batch["valid"][0]) == (1, False), spec
    assert batch["bad_records"]["record"][0] == 0
