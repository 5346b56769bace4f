"""A CSV file names images and their labels; each way to get it wrong is one line."""

import pickle

import numpy as np
import pytest
from PIL import Image

from dinojax import errors
from dinojax.data import label_sets, sources


@pytest.fixture
def folder(tmp_path):
  """A folder with images a.png to d.png, each of one grey."""
  for i, name in enumerate("abcd"):
    Image.new("RGB", (4, 4), (10 * i,) * 3).save(tmp_path / f"{name}.png")
  return tmp_path


def open_table(folder, text, name="table.csv"):
  path = folder / name
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return sources.open_source(f"csv:{path}", field="--train")


def test_files_and_labels_come_in_the_order_of_the_lines(folder, monkeypatch):
  text = "label,file\ndog,c.png\n cat ,./a.png\n,d.png\n"
  monkeypatch.chdir("/")
  source = pickle.loads(pickle.dumps(open_table(folder, text)))
  assert source.class_names == ("cat", "dog")
  assert source.labels.tolist() == [1, 0, -1]
  assert [source[i]["label"] for i in range(3)] == [1, 0, -1]
  assert source[1]["image"] == (folder / "a.png").read_bytes()
  assert source.name(0) == str(folder / "c.png")
  assert not source.notes


def test_what_spreadsheets_write_is_read(folder):
  text = '\ufefffile,label\r\n"a.png","cat, big"\r\n\r\nb.png,Gr\u00fcn\r\n'
  source = open_table(folder, text)
  assert source.class_names == ("Gr\u00fcn", "cat, big")


def test_several_labels_are_sets_in_the_order_of_the_classes_of_train(folder):
  train = open_table(folder, "file,label\na.png,dog;cat\nb.png,\nc.png,emu\n")
  assert train.labels.tolist() == [-1, -1, 2]
  assert "has several labels for 1 of 3 images" in train.notes[0]
  test = open_table(folder, "file,label\nb.png,emu;dog\nc.png,dog;emu;dog\n", "t.csv")
  found = label_sets.LabelSets(test, train.class_names)
  sets = found.sets[found.labels]
  np.testing.assert_array_equal(sets, [[0, 1, 1], [0, 1, 1]])
  assert len(found.sets) == 1
  assert found[1]["image"] == (folder / "c.png").read_bytes()
  with pytest.raises(errors.UserError, match=r"1 classes that --train lacks.*'cat'"):
    label_sets.LabelSets(train, test.class_names)


def test_labels_files_and_order_change_the_fingerprint(folder):
  texts = [
    "file,label\na.png,cat\nb.png,dog\n",
    "file,label\na.png,cat\nb.png,cat\n",
    "file,label\nb.png,dog\na.png,cat\n",
    "file,label\na.png,cat\nc.png,dog\n",
  ]
  found = [open_table(folder, text).fingerprint for text in texts]
  assert len(set(found)) == 4
  assert open_table(folder, texts[0]).fingerprint == found[0]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "is empty; its first line must be file,label"),
    ("\n\n", "is empty; its first line must be file,label"),
    ("file,label\n", "names no image below its columns"),
    (
      "file,labels\na.png,cat\n",
      "must have one column 'label', and has the columns"
      " file, labels; its first line must be file,label",
    ),
    (
      "file;label\na.png;cat\n",
      "must have one column 'file', and has the columns file;label; its",
    ),
    ("file,label,file\n", "must have one column 'file', and has the columns"),
    ("file,label\na.png,cat\nb.png\n", "line 3 has 1 cells, and the first line 2"),
    ("file,label\na.png,cat,dog\n", "line 2 has 3 cells, and the first line 2; quote"),
    ("file,label\n ,cat\n", "line 2 names no file"),
    (
      "file,label\na.png,cat\n\nb.png,dog\n./a.png,dog\n",
      "lines 2 and 5 both name a.png; give each image one line, with several labels as"
      " cat;dog",
    ),
    (
      "file,label\na.png,cat\nx.png,dog\ny.png,dog\n",
      "2 of 3 files are not there, the first in line 3: ",
    ),
    ('file,label\na.png,"cat\n', "line 2: unexpected end of data"),
    (b"file,label\na.png,\xff\xfe\n", "give a CSV file, in UTF-8"),
  ],
)
def test_what_cannot_be_read_is_one_line(folder, text, message):
  with pytest.raises(errors.UserError) as caught:
    open_table(folder, text)
  assert message in str(caught.value)
  assert str(caught.value).startswith('--train="csv:')
  assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_no_file_is_one_line(folder):
  for name in ("none.csv", "."):
    with pytest.raises(errors.UserError, match=r"cannot be read .*; give a CSV file"):
      sources.open_source(f"csv:{folder}/{name}", field="--train")


def test_other_columns_are_named_once(folder):
  source = open_table(folder, "id,file,label,split\n7,a.png,cat,x\n")
  assert source.notes == ("has columns that are ignored: id, split",)
