"""Shards written by array_record and by tfds are read without TensorFlow."""

import contextlib
import io
import os
import pathlib
import pickle
import resource
import shutil
import struct
import sys
import zlib

import numbered
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from dinojax import errors
from dinojax.data import arrayrecord, files, images, sources

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
    int(numbered.read(source, i, attempts=1)[0][0, 0, 0]) for i in range(len(source))
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
  assert source.class_names == ()
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


def test_names_of_classes_lie_beside_shards_and_are_of_one_folder(tmp_path):
  for folder, names in (("a", "cat\ndog\n"), ("b", "dog\ncat\n")):
    (tmp_path / folder).mkdir()
    write(tmp_path / folder / "x.array_record", [example(image=png(10), label=1)])
    (tmp_path / folder / "label.labels.txt").write_text(names)
  source = open_source(f"arrayrecord:{tmp_path}/b/*.array_record")
  assert (source.class_names, source[0]["label"]) == (("dog", "cat"), 1)
  both = open_source(f"arrayrecord:{tmp_path}/*/*.array_record")
  assert (both.class_names, both[0]["label"]) == ((), -1)  # 1 is a dog and a cat
  assert values(both) == [10, 10]
  (tmp_path / "b/label.labels.txt").write_text("cat\ncat\n")
  with pytest.raises(errors.UserError, match="names a class twice"):
    open_source(f"arrayrecord:{tmp_path}/b/*.array_record")


def test_records_that_are_nothing_are_replaced(tmp_path):
  records = [example(label=4), b"\nnot protobuf", b"", b"junk", *[png(9)] * 4]
  write(tmp_path / "x.array_record", records)
  source = open_source(f"arrayrecord:{tmp_path}/x.array_record")
  read = [numbered.read(source, i, attempts=32) for i in range(len(source))]
  assert [bool(reason) for _, _, reason in read] == [True] * 4 + [False] * 4
  assert {int(image[0, 0, 0]) for image, _, _ in read} == {9}


def test_a_damaged_chunk_is_replaced(shards, tmp_path):
  path = tmp_path / "b.array_record"
  damaged = bytearray(path.read_bytes())
  first, second = arrayrecord.record_offsets(str(path))[:2].tolist()
  damaged[(first + second) // 2] ^= 255
  path.write_bytes(damaged)
  source = open_source(shards)
  (bad,) = numbered.corrupt(source, attempts=32)
  assert bad in (3, 4, 5, 6)


LAYOUTS = ["", ",uncompressed", ",pad_to_block_boundary:true", ",brotli", ",transpose"]


@pytest.mark.parametrize("layout", [*("group_size:1" + x for x in LAYOUTS), "default"])
def test_records_of_any_size_and_layout_are_read_as_array_record_reads_them(
  tmp_path, layout
):
  rng = np.random.default_rng(0)
  sizes = [0, 1, 65_432, 65_472, 65_536, 200_000, 0, *rng.integers(0, 9_000, 50)]
  records = [b"x" + rng.bytes(int(size)) for size in sizes] + [b"z" * 200_000]
  path = str(tmp_path / "a.array_record")
  writer = array_record_module.ArrayRecordWriter(path, layout)
  for record in records:
    writer.write(record)
  writer.close()
  source = open_source(f"arrayrecord:{path}")
  assert [source[i]["image"] for i in range(len(source))] == records


def test_another_shard_in_the_place_of_one_is_never_read_by_the_old_index(
  shards, tmp_path
):
  source = open_source(shards)
  assert values(source) == COLOURS.tolist()
  write(tmp_path / "a.array_record", [png(90), png(91), png(92)])
  copy = pickle.loads(pickle.dumps(source))
  with pytest.raises(
    OSError, match=r"a\.array_record' has changed since the run began"
  ):
    copy[0]
  assert values(open_source(shards)) == [90, 91, 92, *COLOURS[3:]]


def test_a_shard_cut_while_running_has_corrupt_records_and_one_that_is_gone_ends_it(
  shards, tmp_path
):
  source = open_source(shards)
  copy = pickle.loads(pickle.dumps(source))
  path = tmp_path / "b.array_record"
  values_before = source[6]["image"]  # Opens the file.
  os.truncate(path, arrayrecord.record_offsets(str(path))[3] + 9)
  assert values_before
  assert numbered.corrupt(source, range(3, 7), attempts=64) == [6]
  (tmp_path / "a.array_record").unlink()
  with pytest.raises(errors.TemporaryError, match="was removed since the run began"):
    numbered.read(copy, 0)


def varint(number):
  low = [number >> shift & 0x7F for shift in range(0, number.bit_length() or 1, 7)]
  return bytes([*(x | 0x80 for x in low[:-1]), low[-1]])


def chunk_of_zeros(size, *, claimed, told):
  """A chunk whose few bytes expand to `size`; it claims another one.

  told: whether the frame of zstd itself says how much it holds (RFC 8878).
  """
  block = 1 << 17
  frame = b"\x28\xb5\x2f\xfd" + (b"\xc0\x50" + size.to_bytes(8, "little"))
  if not told:
    frame = b"\x28\xb5\x2f\xfd\x00\x50"
  for left in range(size // block - 1, -1, -1):
    frame += (block << 3 | 1 << 1 | (not left)).to_bytes(3, "little") + b"\0"
  content = bytes([arrayrecord.ZSTD]) + varint(1) + b"\0" + varint(claimed) + frame
  kind = arrayrecord.SIMPLE | 1 << 8
  return struct.pack("<QQQQQ", 0, len(content), 0, kind, claimed) + content


def png_of_size(width, height):
  """A PNG of a hundred bytes that says how large it is, and no more."""
  ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  parts = [ihdr, b"IDAT" + zlib.compress(bytes(99)), b"IEND"]
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    for part in parts
  )


@contextlib.contextmanager
def little_memory():
  """No more than 512 MiB on top of what this process has."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
  before = resource.getrlimit(resource.RLIMIT_AS)
  limit = pages * resource.getpagesize() + (512 << 20)
  resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("claimed", [5 << 28, 1000])
def test_what_would_expand_beyond_all_bounds_is_a_bad_record(tmp_path, claimed, told):
  path = tmp_path / "a.array_record"
  # A record that does not compress leaves room for the chunk, before a block's header.
  room = np.random.default_rng(0).bytes(60_000)
  write(path, [png(10), room, png_of_size(1 << 17, 1000), png(30)])
  begin = int(arrayrecord.record_offsets(str(path))[1])
  chunk = chunk_of_zeros(5 << 28, claimed=claimed, told=told)
  assert len(chunk) < len(room) and begin + len(chunk) < arrayrecord.BLOCK
  content = bytearray(path.read_bytes())
  content[begin : begin + len(chunk)] = chunk
  path.write_bytes(content)
  source = open_source(f"arrayrecord:{path}")
  with little_memory():
    with pytest.raises(ValueError, match="damaged chunk"):
      source[1]
    with pytest.raises(ValueError, match="131072x1000 pixels are more"):
      images.decode(source[2]["image"])
    assert numbered.corrupt(source, attempts=32) == [1, 2]


def test_an_index_is_written_once_and_again_when_it_is_damaged(shards, tmp_path):
  open_source(shards)
  (path,) = tmp_path.glob(".dinojax-index-*")
  written = path.stat().st_ino
  open_source(shards)
  assert path.stat().st_ino == written
  os.truncate(path, path.stat().st_size - 8)
  assert values(open_source(shards)) == COLOURS.tolist()
  assert path.stat().st_ino != written
  assert list(tmp_path.glob(".dinojax-index-*")) == [path]


def test_without_room_for_the_index_one_line_says_so_and_nothing_is_left(
  shards, tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
  try:
    with pytest.raises(
      errors.UserError, match=r"written nowhere .*XDG_CACHE"
    ) as raised:
      open_source(shards)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert "\n" not in str(raised.value)
  assert not list(tmp_path.rglob("*index*"))
  assert values(open_source(shards)) == COLOURS.tolist()


def test_a_bucket_is_refused_with_the_way_out():
  with pytest.raises(errors.UserError, match=r"is a bucket.*gcsfuse"):
    open_source("arrayrecord:gs://bucket/*.array_record")


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


def test_other_records_of_the_same_sizes_are_other_data(tmp_path):
  fingerprints = set()
  for value in (b"a", b"b"):
    write(tmp_path / "a.array_record", [value * 300] * 3)
    os.utime(tmp_path / "a.array_record", ns=(0, 0))
    fingerprints.add(open_source(f"arrayrecord:{tmp_path}/*.array_record").fingerprint)
  assert len(fingerprints) == 2


def test_a_record_over_the_limit_is_a_bad_record_and_names_the_limit(
  shards, monkeypatch
):
  source = open_source(shards)
  monkeypatch.setattr(files, "MAX_RECORD", 60)
  with pytest.raises(ValueError, match="over the limit of 60 for an image"):
    source[0]


def test_only_regular_files_are_shards_and_names_of_classes(shards, tmp_path):
  os.mkfifo(tmp_path / "label.labels.txt")
  with pytest.raises(errors.UserError, match="is no regular file"):
    open_source(shards)
  os.mkfifo(tmp_path / "c.array_record")
  with pytest.raises(errors.UserError, match="is no regular file"):
    open_source(shards)


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
  (tmp_path / "caf\udce9").mkdir()
  shutil.copy(tmp_path / "none.array_record", tmp_path / "caf\udce9")
  with pytest.raises(errors.UserError, match=r"caf\\xe9/none.*, which is not UTF-8"):
    open_source(f"arrayrecord:{tmp_path}/caf*/*")


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
  assert source.class_names == ("a", "b", "c")
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


def test_other_bytes_in_the_shards_of_a_tfds_split_are_other_data(
  tfds_dir, tmp_path, monkeypatch
):
  before = open_source("tfds:tiny_pictures:train").fingerprint
  shutil.copytree(tfds_dir, tmp_path / "copy")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "copy"))
  assert open_source("tfds:tiny_pictures:train").fingerprint == before
  (shard,) = (tmp_path / "copy").rglob("*.array_record-*")
  content = bytearray(shard.read_bytes())
  content[1000] ^= 1
  shard.write_bytes(content)
  assert open_source("tfds:tiny_pictures:train").fingerprint != before


def test_a_tfds_split_that_goes_away_ends_the_run_and_an_empty_example_is_corrupt(
  tfds_dir, tmp_path, monkeypatch
):
  shutil.copytree(tfds_dir, tmp_path / "copy")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "copy"))
  source = open_source("tfds:tiny_pictures:train")
  empty = open_source("tfds:tiny_pictures:train")
  shutil.rmtree(tmp_path / "copy")
  with pytest.raises(errors.TemporaryError, match="was removed since the run began"):
    numbered.read(source, 0)
  empty._records = [{"image": None, "label": None}]  # as array_record reads past an end
  with pytest.raises(ValueError, match="an example without an image"):
    empty[0]


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
