"""Images of Parquet files are read by index, and as ingest reads them in order."""

import io
import json
import os
import pickle
import sys

import numbered
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet as arrow_parquet

from dinojax import errors
from dinojax.data import class_labels, parquet, sources


def png(value):
  file = io.BytesIO()
  Image.new("RGB", (3, 2), (int(value), 0, 0)).save(file, "PNG")
  return file.getvalue()


def hugging_face(**features):
  """Metadata as the library datasets writes it, of {column: names of classes}."""
  described = {
    column: {"names": names, "_type": "ClassLabel"}
    for column, names in features.items()
  }
  return {"huggingface": json.dumps({"info": {"features": described}})}


def write(path, images, *, metadata=None, rows=2, **columns):
  table = pyarrow.table({"image": images, **columns})
  table = table.replace_schema_metadata(metadata)
  arrow_parquet.write_table(table, path, row_group_size=rows)


def open_source(path):
  return sources.open_source(f"parquet:{path}", field="config.data.sources[0]")


def values(source):
  return [
    int(numbered.read(source, i, attempts=1)[0][0, 0, 0]) for i in range(len(source))
  ]


def labels(source):
  return [source[i]["label"] for i in range(len(source))]


def in_order(path, *columns):
  groups, _ = parquet.row_groups(str(path), "x", *columns)
  return [
    row for group in range(groups) for row in parquet.read(str(path), group, "", "")
  ]


@pytest.fixture
def shards(tmp_path):
  images = [{"bytes": png(10 * i), "path": f"{i}.png"} for i in range(7)]
  names = hugging_face(label=["cat", "dog", "owl"])
  numbers = [i % 3 for i in range(7)]
  write(tmp_path / "b.parquet", images[5:], label=numbers[5:], metadata=names)
  write(tmp_path / "a.parquet", images[:5], label=numbers[:5], metadata=names)
  return tmp_path


def test_images_follow_in_the_order_of_files_with_hugging_faces_classes(shards):
  source = open_source(shards / "*.parquet")
  assert values(source) == [0, 10, 20, 30, 40, 50, 60]
  assert labels(source) == [0, 1, 2, 0, 1, 2, 0]
  assert source.class_names == ("cat", "dog", "owl")
  assert source.name(3) == f"{shards}/a.parquet#1.1"
  assert source.name(5) == f"{shards}/b.parquet#0.0"
  copy = pickle.loads(pickle.dumps(source))
  assert values(copy) == values(source) and copy.fingerprint == source.fingerprint
  with pytest.raises(IndexError):
    source[7]


def test_by_index_and_in_order_the_same_is_read(shards):
  source, path = open_source(shards / "a.parquet"), shards / "a.parquet"
  rows = in_order(path)
  assert [row[1] for row in rows] == [source[i]["image"] for i in range(5)]
  assert [row[2] for row in rows] == labels(source)
  assert [row[0] for row in rows] == ["0", "1", "0", "1", "0"]


def test_numbers_are_classes_where_nothing_names_them(tmp_path):
  write(tmp_path / "0.parquet", [png(1), png(2), png(3)], label=[4, None, 0])
  source = open_source(tmp_path / "0.parquet")
  assert source.class_names == ("0", "1", "2", "3", "4")
  assert labels(source) == [4, -1, 0]


@pytest.mark.parametrize(
  "metadata",
  [
    {"huggingface": "no JSON"},
    {"huggingface": "[" * 100_000},
    {"huggingface": '{"info": []}'},
    {"huggingface": '{"info": {"features": {"label": {"_type": "Value"}}}}'},
    hugging_face(other=["a"]),
    hugging_face(label=[1, 2]),
  ],
)
def test_metadata_of_another_kind_name_no_classes(tmp_path, metadata):
  write(tmp_path / "0.parquet", [png(1), png(2)], label=[0, 1], metadata=metadata)
  assert open_source(tmp_path / "0.parquet").class_names == ("0", "1")


def test_files_that_name_classes_differently_have_no_labels(shards):
  other = hugging_face(label=["dog", "cat"])
  write(shards / "c.parquet", [png(70)], label=[0], metadata=other)
  source = open_source(shards / "*.parquet")
  assert (set(labels(source)), source.class_names) == ({-1}, ())


@pytest.mark.parametrize(
  ("kind", "value"),
  [(pyarrow.uint64(), 2**63), (pyarrow.uint64(), 2**64 - 1), (pyarrow.int64(), 2**40)],
)
def test_labels_that_number_no_class_are_none(tmp_path, kind, value):
  label = pyarrow.array([0, value], kind)
  write(tmp_path / "0.parquet", [png(1), png(2)], label=label)
  source = open_source(tmp_path / "0.parquet")
  assert (labels(source), source.class_names) == ([-1, -1], ())
  kept = value if value < 2**63 else class_labels.NOT_A_CLASS
  assert [row[2] for row in in_order(tmp_path / "0.parquet")] == [0, kept]


def test_a_row_without_bytes_is_a_corrupt_record(tmp_path):
  images = [{"bytes": png(1), "path": None}, {"bytes": None, "path": "there.png"}]
  write(tmp_path / "0.parquet", [*images, None, {"bytes": b"", "path": None}])
  source = open_source(tmp_path / "0.parquet")
  assert numbered.corrupt(source, attempts=64) == [1, 2, 3]
  assert numbered.read(source, 2, attempts=64)[2] == "no bytes in this row"
  troubles = [row[3] for row in in_order(tmp_path / "0.parquet")]
  assert troubles == ["", *["no bytes in this row"] * 3]


def test_a_damaged_row_group_is_corrupt_records_and_others_are_read(tmp_path):
  path, rng = tmp_path / "0.parquet", np.random.default_rng(0)
  images = [rng.bytes(3000) for _ in range(6)]
  write(path, images, label=[0, 1, 2, 3, 4, 5])
  group = arrow_parquet.read_metadata(path).row_group(1)
  for column in (0, 1):  # of images, and of labels
    data = bytearray(path.read_bytes())
    begin = group.column(column).dictionary_page_offset
    size = group.column(column).total_compressed_size
    data[begin : begin + size] = bytes(size)
    (tmp_path / "damaged.parquet").write_bytes(data)
    source = open_source(tmp_path / "damaged.parquet")
    for i in (0, 1, 4, 5):
      assert source[i]["image"] == images[i]
    for i in (2, 3):
      with pytest.raises(ValueError, match="row group 1 is damaged"):
        source[i]
    rows = in_order(tmp_path / "damaged.parquet")
    assert [row[1] for row in rows if row[1]] == [images[i] for i in (0, 1, 4, 5)]
    assert [row[3][:22] for row in rows if row[3]] == ["row group 1 is damaged"]


def test_an_image_that_stands_for_many_is_not_decoded_to_as_many(tmp_path):
  path, image, rows = tmp_path / "0.parquet", os.urandom(500_000), 300
  same = pyarrow.DictionaryArray.from_arrays(
    pyarrow.array([0] * rows, pyarrow.int32()), pyarrow.array([image])
  )
  for column in (same, pyarrow.StructArray.from_arrays([same], ["bytes"])):
    table = pyarrow.table({"image": column})
    arrow_parquet.write_table(table, path, row_group_size=rows, store_schema=False)
    source = open_source(path)
    assert len(source) == rows and source[rows - 1]["image"] == image
    assert source._kept_bytes() < 1 << 20
    (*_, last) = parquet.read(str(path), 0, "", "")
    assert last == (str(rows - 1), image, -1, "")


def test_row_groups_that_are_too_large_to_read_one_image_of_are_refused(
  tmp_path, monkeypatch, caplog
):
  write(tmp_path / "0.parquet", [os.urandom(1000) for _ in range(8)], rows=8)
  monkeypatch.setattr(parquet, "GROUP_BYTES", 4000)
  open_source(tmp_path / "0.parquet")
  assert "row_group_size=100" in caplog.text
  monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 7000)
  with pytest.raises(errors.UserError, match=r"row_group_size=100.*dinojax\.ingest"):
    open_source(tmp_path / "0.parquet")
  assert len(in_order(tmp_path / "0.parquet")) == 8


def test_row_groups_that_were_read_lately_are_kept_up_to_a_bound(tmp_path, monkeypatch):
  monkeypatch.setattr(parquet, "CACHE_BYTES", 5000)
  write(tmp_path / "0.parquet", [os.urandom(1000) for _ in range(8)])
  source = open_source(tmp_path / "0.parquet")
  first = source._table(0)
  assert source._table(0) is first
  for group in (1, 2, 3):
    source._table(group)
  assert source._kept_bytes() <= 5000
  assert source._table(0) is not first


def test_another_file_in_the_place_of_one_is_never_read(shards):
  source = pickle.loads(pickle.dumps(open_source(shards / "*.parquet")))
  write(shards / "a.parquet", [png(9)] * 5, label=[0] * 5)
  with pytest.raises(OSError, match="has changed since the run began"):
    source[0]
  assert source[5]["image"] == png(50)


def test_the_fingerprint_moves_with_images_and_with_names_of_classes(shards):
  before = open_source(shards / "*.parquet").fingerprint
  assert open_source(shards / "*.parquet").fingerprint == before
  images = [{"bytes": png(i), "path": None} for i in range(5)]
  names = hugging_face(label=["cat", "dog", "owl"])
  write(shards / "a.parquet", images, label=[0] * 5, metadata=names)
  changed = open_source(shards / "*.parquet").fingerprint
  assert changed != before


def test_what_is_no_set_of_images_is_one_line(tmp_path):
  (tmp_path / "text.parquet").write_bytes(b"text" * 100)
  arrow_parquet.write_table(pyarrow.table({"label": [1]}), tmp_path / "none.parquet")
  arrow_parquet.write_table(
    pyarrow.table({"a": [b"x"], "b": [b"x"]}), tmp_path / "two.parquet"
  )
  write(tmp_path / "empty.parquet", pyarrow.array([], pyarrow.binary()))
  for name, reason in [
    ("nothing.parquet", "matches no file"),
    ("text.parquet", "is no Parquet file"),
    ("none.parquet", r"no column of encoded images that is plainly one"),
    ("two.parquet", r'\["a", "b"\]; call it `image`'),
    ("empty.parquet", "without a row"),
  ]:
    with pytest.raises(errors.UserError, match=reason) as raised:
      open_source(tmp_path / name)
    assert str(raised.value).startswith('config.data.sources[0]="parquet:')
    assert "\n" not in str(raised.value)


def test_names_of_columns_that_are_no_text_are_one_line(tmp_path):
  path = tmp_path / "a.parquet"
  table = pyarrow.table({"image": [png(1)], "caption": ["text"]})
  arrow_parquet.write_table(table, path)
  whole, start = path.read_bytes(), 0
  for _ in range(whole.count(b"caption")):  # schemas and chunks name it
    start = whole.index(b"caption", start) + 1
    path.write_bytes(whole[: start + 2] + b"\xff" + whole[start + 3 :])
    try:
      assert values(open_source(path)) == [1]
    except errors.UserError as error:
      assert "no Parquet file" in str(error) and "\n" not in str(error)


def test_without_pyarrow_one_line_says_how_to_install_it(shards, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(errors.UserError, match=r"pip install 'dinojax\[parquet\]'"):
    open_source(shards / "*.parquet")


def test_text_that_is_not_utf_8_beside_an_image_costs_neither_image_nor_start(tmp_path):
  images, odd = [png(1), None, png(3)], [b"a.png", b"b.png", b"\xff.png"]
  paths = pyarrow.array(odd).view(pyarrow.string())
  cells = pyarrow.StructArray.from_arrays(
    [pyarrow.array(images), paths], ["bytes", "path"]
  )
  write(tmp_path / "a.parquet", cells, label=paths)
  source = open_source(tmp_path / "a.parquet")
  assert numbered.read(source, 2, attempts=1)[0][0, 0, 0] == 3
  assert source[0]["label"] == class_labels.NO_LABEL
  rows = in_order(tmp_path / "a.parquet", "", "")
  assert [bool(image) for _, image, _, _ in rows] == [True, False, True]
