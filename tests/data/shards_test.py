"""Shards written by array_record and by tfds are read without TensorFlow."""

import io
import pickle
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from dinojax import errors
from dinojax.data import sources

COLOURS = np.arange(0, 70, 10)


def png(value):
  buffer = io.BytesIO()
  Image.new("RGB", (3, 2), (int(value), 0, 0)).save(buffer, "PNG")
  return buffer.getvalue()


def example(**features):
  message = tf_example_pb2.Example()
  for name, value in features.items():
    if isinstance(value, bytes):
      message.features.feature[name].bytes_list.value.append(value)
    else:
      message.features.feature[name].int64_list.value.append(value)
  return message.SerializeToString()


def write(path, records):
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


def open_source(spec):
  return sources.open_source(spec, field="config.data.source")


def values(source):
  return [
    int(sources.read(source, i, attempts=1)[0][0, 0, 0]) for i in range(len(source))
  ]


@pytest.fixture
def shards(tmp_path):
  write(tmp_path / "b.array_record", [png(value) for value in COLOURS[3:]])
  write(tmp_path / "a.array_record", [png(value) for value in COLOURS[:3]])
  return f"arrayrecord:{tmp_path}/*.array_record"


def test_shards_of_images_follow_in_the_order_of_their_names(shards, tmp_path):
  source = open_source(shards)
  assert values(source) == COLOURS.tolist()
  assert source[0]["label"] == -1
  assert source.num_classes == 0
  assert source.name(2) == f"{tmp_path}/a.array_record#2"
  assert source.name(3) == f"{tmp_path}/b.array_record#0"


def test_an_example_gives_its_image_and_label(tmp_path):
  records = [
    example(image=png(10), label=4, name=b"x"),
    example(image=png(20)),
    png(30),
  ]
  write(tmp_path / "x.array_record", records)
  source = open_source(f"arrayrecord:{tmp_path}/x.array_record")
  assert values(source) == [10, 20, 30]
  assert [source[i]["label"] for i in range(3)] == [4, -1, -1]


def test_records_that_are_nothing_are_replaced(tmp_path):
  records = [example(label=4), b"\nnot protobuf", b"", b"junk", *[png(9)] * 4]
  write(tmp_path / "x.array_record", records)
  source = open_source(f"arrayrecord:{tmp_path}/x.array_record")
  read = [sources.read(source, i, attempts=32) for i in range(len(source))]
  assert [bad_index for _, _, bad_index in read] == [0, 1, 2, 3, -1, -1, -1, -1]
  assert {int(image[0, 0, 0]) for image, _, _ in read} == {9}


def test_a_damaged_chunk_is_replaced(shards, tmp_path):
  path = tmp_path / "b.array_record"
  damaged = bytearray(path.read_bytes())
  damaged[200] ^= 255
  path.write_bytes(damaged)
  source = open_source(shards)
  bad = {sources.read(source, i, attempts=32)[2] for i in range(len(source))} - {-1}
  assert len(bad) == 1
  assert bad < {3, 4, 5, 6}


def test_a_pickled_source_reads_the_same(shards):
  source = open_source(shards)
  values(source)  # Open readers must not hinder pickling.
  copy = pickle.loads(pickle.dumps(source))
  assert values(copy) == COLOURS.tolist()
  assert copy.fingerprint == source.fingerprint


def test_the_fingerprint_moves_with_the_shards(shards, tmp_path):
  before = open_source(shards).fingerprint
  assert open_source(shards).fingerprint == before
  write(tmp_path / "c.array_record", [png(1)])
  assert open_source(shards).fingerprint != before


def test_wrong_shards_are_one_line_each(tmp_path):
  (tmp_path / "text.array_record").write_bytes(b"text" * 100)
  write(tmp_path / "none.array_record", [])
  for pattern, reason in [
    ("*.tfrecord", "matches no file"),
    ("text.*", "text.array_record"),
    ("none.*", "without a record"),
  ]:
    with pytest.raises(errors.UserError, match=reason) as raised:
      open_source(f"arrayrecord:{tmp_path}/{pattern}")
    assert str(raised.value).startswith('config.data.source="arrayrecord:')
    assert "\n" not in str(raised.value)


class TinyPictures(tfds.core.GeneratorBasedBuilder):
  """Seven labelled images and some text."""

  VERSION = tfds.core.Version("1.2.0")

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
      "text": tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i, value in enumerate(COLOURS):
      yield i, {"image": io.BytesIO(png(value)), "label": i % 3, "text": "x"}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  TinyPictures(file_format="array_record", data_dir=folder).download_and_prepare()
  return folder


@pytest.fixture(autouse=True)
def tfds_data_dir(tfds_dir, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))


@pytest.mark.parametrize("name", ["tiny_pictures", "tiny_pictures:1.2.0"])
def test_a_prepared_tfds_split_is_read_without_tensorflow(name):
  source = open_source(f"tfds:{name}:train")
  assert sorted(values(source)) == COLOURS.tolist()
  assert source.num_classes == 3
  assert source.name(2) == "tiny_pictures/1.2.0:train#2"
  for i in range(len(source)):
    assert source[i]["image"].startswith(b"\x89PNG")
    assert source[i]["label"] == COLOURS.tolist().index(values(source)[i]) % 3
  assert "tensorflow" not in sys.modules


def test_a_range_of_a_tfds_split_has_a_fingerprint_of_its_own():
  whole = open_source("tfds:tiny_pictures:train")
  part = open_source("tfds:tiny_pictures:1.2.0:train[:5]")
  assert len(part) == 5
  assert values(part) == values(whole)[:5]
  assert part.fingerprint != whole.fingerprint
  assert open_source("tfds:tiny_pictures:1.2.0:train").fingerprint == whole.fingerprint


def test_a_pickled_tfds_source_reads_the_same(monkeypatch):
  source = open_source("tfds:tiny_pictures:train")
  expected = values(source)
  monkeypatch.delenv("TFDS_DATA_DIR")
  assert values(pickle.loads(pickle.dumps(source))) == expected


def test_a_wrong_tfds_name_or_split_is_one_line(tfds_dir):
  for spec, reason in [
    ("tfds:imagenet2012:train", f"not prepared in {tfds_dir}; set TFDS_DATA_DIR"),
    ("tfds:tiny_pictures:9.9.9:train", "not prepared"),
    ("tfds:not a name:train", "not prepared"),
    ("tfds:tiny_pictures:validation", "Unknown split 'validation'.*'train'"),
  ]:
    with pytest.raises(errors.UserError, match=reason) as raised:
      open_source(spec)
    assert str(raised.value).startswith(f'config.data.source="{spec}"')
    assert "\n" not in str(raised.value)
