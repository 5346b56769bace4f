"""Two sources number the same classes alike, or are refused."""

import pytest
from PIL import Image

from dinojax import errors
from dinojax.data import classes, sources


@pytest.fixture
def folder(tmp_path):
  def make(name, folders):
    for each in folders:
      path = tmp_path / name / each / "0.png"
      path.parent.mkdir(parents=True)
      Image.new("RGB", (2, 2)).save(path)
    return sources.open_source(f"folder:{tmp_path}/{name}", field=f"--{name}")

  return make


def labels(source):
  return [source[i]["label"] for i in range(len(source))]


def test_a_test_set_that_lacks_a_class_gets_the_numbers_of_the_others(folder):
  train, test = folder("train", ["ant", "bee", "cat"]), folder("test", ["ant", "cat"])
  assert labels(test) == [0, 1]
  matched = classes.match(train, test)
  assert labels(matched) == [0, 2]
  assert matched.class_names == train.class_names == ("ant", "bee", "cat")
  assert [matched.name(i) for i in range(2)] == [test.name(i) for i in range(2)]
  # Features that were kept with the labels of before would not do.
  assert matched.fingerprint not in (test.fingerprint, train.fingerprint)
  assert matched.where == test.where


def test_no_label_stays_none():
  class Some:
    where, fingerprint, notes, class_names, labels = "", "", (), ("b",), None

    def __getitem__(self, index):
      return {"image": b"", "label": -1}

  train = Some()
  train.class_names = ("a", "b")
  assert classes.match(train, Some())[0]["label"] == -1


def test_the_same_classes_or_none_are_left_as_they_are(folder):
  train, flat = folder("train", ["ant", "bee"]), folder("flat", ["."])
  test = folder("test", ["ant", "bee"])
  for other in (test, flat):
    assert classes.match(train, other) is other
    assert classes.match(other, train) is train


def test_numbers_stand_for_as_many_names(folder):
  train, test = folder("train", ["ant", "bee"]), folder("test", ["0", "1"])
  assert classes.match(train, test) is test
  assert classes.match(test, train) is train
  first = folder("first", ["0"])  # of a set that lacks the last class
  assert classes.match(train, first) is first


@pytest.mark.parametrize("names", [["ant", "dog"], ["0", "1", "2"]])
def test_classes_that_the_other_lacks_are_named(folder, names):
  train, test = folder("train", ["ant", "bee"]), folder("test", names)
  with pytest.raises(errors.UserError, match=r"^--test=.* that --train=.* lacks \("):
    classes.match(train, test)
