"""One string names a source, and a user's mistake becomes one line."""

import contextlib
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
from sklearn import datasets
from tensorflow_datasets.proto import tf_example_pb2

from dinojax import errors
from dinojax.data import images, mixture, sources, train_batches


@pytest.mark.parametrize(
  "spec",
  [
    "",
    "folder:",
    "/data/images",
    "tfds:mnist",
    "embedded:digits",
    "embedded:scenes:val",
    "s3:bucket",
  ],
)
def test_an_unknown_source_is_told_what_there_is(spec):
  with pytest.raises(errors.UserError, match=r"config.knn.train=.* must be "):
    sources.open_source(spec, field="config.knn.train")


@pytest.mark.parametrize(
  ("spec", "meant"),
  [
    ("photos", "folder:"),
    ("a.array_record-00000-of-00001", "arrayrecord:"),
    ("*.array_record*", "arrayrecord:"),
    ("*.tar", "tar:"),
    ("*.parquet", "parquet:"),
  ],
)
def test_a_path_without_its_kind_is_told_the_kind(tmp_path, monkeypatch, spec, meant):
  (tmp_path / "photos").mkdir()
  (tmp_path / "a.array_record-00000-of-00001").touch()
  for name in ("0.tar", "0.parquet", "notes.txt"):
    (tmp_path / name).touch()
  monkeypatch.setenv("HOME", str(tmp_path))
  for path in (f"{tmp_path}/{spec}", f"~/{spec}"):
    with pytest.raises(errors.UserError) as raised:
      sources.open_source(path, field="--images")
    assert str(raised.value).endswith(f"; did you mean {meant}{path}?")
  for path in (f"{tmp_path}/none/{spec}", f"{tmp_path}/notes.txt"):
    with pytest.raises(errors.UserError, match=r"embedded:depth:SPLIT$"):
      sources.open_source(path, field="--images")


def test_digits_are_those_of_scikit_learn():
  wanted = datasets.load_digits()
  found = [
    sources.open_source(f"embedded:digits:{x}", field="f") for x in ("train", "test")
  ]
  assert wanted.target.tolist() == [label for split in found for label in split.labels]
  grey = np.rint(wanted.images * (255 / 16))
  for i, record in enumerate(record for split in found for record in split):
    assert np.array_equal(record["image"], np.stack([grey[i]] * 3, axis=-1))


def test_digits_split_into_1347_and_450_scaled_to_a_byte():
  train = sources.open_source("embedded:digits:train", field="f")
  test = sources.open_source("embedded:digits:test", field="f")
  assert (len(train), len(test), len(train.class_names)) == (1347, 450, 10)
  pixels = np.stack([train[i]["image"] for i in range(len(train))])
  assert pixels.shape == (1347, 8, 8, 3)
  assert pixels.dtype == np.uint8
  assert (pixels.min(), pixels.max()) == (0, 255)
  assert len(np.unique(pixels)) == 17
  assert {test[i]["label"] for i in range(450)} == set(range(10))
  assert train.fingerprint != test.fingerprint
  assert train.name(3) == "digits:train#3"


IMAGES, CLASSES = 8, 3


def png(value):
  file = io.BytesIO()
  Image.new("RGB", (3, 2), (value, 0, 0)).save(file, "PNG")
  return file.getvalue()


@pytest.fixture
def every_kind(tmp_path):
  """The same images and labels in each kind of source that reads files."""
  pictures = [png(10 * i) for i in range(IMAGES)]
  labels = [i * CLASSES // IMAGES for i in range(IMAGES)]
  writer = array_record_module.ArrayRecordWriter(
    str(tmp_path / "0.array_record"), "group_size:1"
  )
  (tmp_path / "label.labels.txt").write_text("0\n1\n2\n")
  table = pyarrow.table({"image": pictures, "label": labels})
  parquet.write_table(table, tmp_path / "0.parquet", row_group_size=3)
  with tarfile.open(tmp_path / "0.tar", "w") as tar:
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
      path = tmp_path / "folder" / str(label) / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(picture)
      for name, content in ((f"{i}.png", picture), (f"{i}.cls", b"%d" % label)):
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
      example = tf_example_pb2.Example()
      example.features.feature["image"].bytes_list.value.append(picture)
      example.features.feature["label"].int64_list.value.append(label)
      writer.write(example.SerializeToString())
  writer.close()
  specs = ("folder", "tar", "parquet", "arrayrecord")
  endings = ("folder", "0.tar", "0.parquet", "0.array_record")
  return [
    sources.open_source(f"{kind}:{tmp_path}/{ending}", field="f")
    for kind, ending in zip(specs, endings, strict=True)
  ]


def test_every_kind_gives_the_same_images_labels_and_classes(every_kind):
  first, *others = every_kind
  for other in others:
    assert [other[i] for i in range(IMAGES)] == [first[i] for i in range(IMAGES)]
    assert other.class_names == first.class_names == ("0", "1", "2")


def colours(rng, image):
  """Crops that show which image they are of."""
  pixels = images.decode(image)
  return {"global_crops": pixels[None, :2, :2], "local_crops": pixels[None, :1, :1]}


@pytest.mark.process
def test_every_kind_is_read_alike_by_worker_processes_and_in_this_one(every_kind):
  flags.FLAGS.mark_as_parsed()

  def batches(workers):
    stream = train_batches.stream(
      mixture.Mixture(every_kind, [1.0] * 4),
      seed=0,
      batch_size=8,
      group_size=2,
      rows=[
        train_batches.Row(colours, dict(views=1, grid=4, ratio_min=0.1, ratio_max=0.5))
      ],
      groups=range(4),
      workers=workers,
      start_step=0,
    )
    with contextlib.closing(stream):
      return [next(stream) for _ in range(IMAGES // 2)]

  by_worker = batches(1)
  numbered.assert_same(by_worker, batches(0))
  seen = np.concatenate([batch["global_crops"][:, 0, 0, 0, 0] for batch in by_worker])
  assert sorted(seen.tolist()) == sorted([*range(0, 80, 10)] * 4)
