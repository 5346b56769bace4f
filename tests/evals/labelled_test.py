"""Labels are known before features are computed, from every kind of source."""

import io
import tarfile

import numpy as np
import pytest
from absl import flags
from array_record.python import array_record_module
from PIL import Image

from dinojax import errors
from dinojax.data import classes, sources
from dinojax.evals import labelled


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # Grain's, which its workers read


def png():
  file = io.BytesIO()
  Image.new("RGB", (4, 4)).save(file, "PNG")
  return file.getvalue()


def write_folder(root, counts):
  for name, count in counts.items():
    (root / name).mkdir(parents=True)
    for i in range(count):
      (root / name / f"{i}.png").write_bytes(png())
  return f"folder:{root}"


def write_tar(path, labels):
  with tarfile.open(path, "w") as file:
    for i, label in enumerate(labels):
      for name, content in ((f"{i}.png", png()), (f"{i}.cls", str(label).encode())):
        info = tarfile.TarInfo(name)
        info.size = len(content)
        file.addfile(info, io.BytesIO(content))
  return f"tar:{path}"


@pytest.fixture(params=["folder", "tar", "digits"])
def source(request, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  if request.param == "folder":
    spec = write_folder(tmp_path / "images", {"cat": 3, "dog": 2})
    (tmp_path / "images" / "cat" / "1.png").write_bytes(b"no image")
  elif request.param == "tar":
    spec = write_tar(tmp_path / "a.tar", [2, 0, 1, 1])
  else:
    spec = "embedded:digits:test"
  return sources.open_source(spec, field="--train")


def test_a_source_that_lists_its_labels_is_not_read_for_them(source, monkeypatch):
  wanted = [source[i]["label"] for i in range(len(source))]
  monkeypatch.setattr(type(source), "__getitem__", None)
  found = labelled.read(source, name="--train", workers=0, progress=None)
  assert found.tolist() == wanted


class Records:
  """Labels that lie in the records; some are corrupt."""

  where, class_names, labels = '--train="records"', (), None

  def __init__(self, found):
    self.found = found

  def __len__(self):
    return len(self.found)

  def __getitem__(self, index):
    if self.found[index] is None:
      raise ValueError("damaged")
    return {"image": b"", "label": self.found[index]}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.process)])
def test_other_sources_are_read_in_order_and_corrupt_records_have_no_label(workers):
  found = [i % 7 - 1 for i in range(2 * labelled.BLOCK + 9)]
  found[300] = None
  blocks = []  # known to a watchdog
  labels = labelled.read(
    Records(found),
    name="--train",
    workers=workers,
    progress=lambda: blocks.append(None),
  )
  assert labels.tolist() == [-1 if x is None else x for x in found]
  assert len(blocks) == 3


def test_classes_of_one_source_are_numbered_as_the_first_one_numbers_them(tmp_path):
  specs = {
    name: write_folder(tmp_path / name, counts)
    for name, counts in {
      "train": {"ant": 1, "bee": 1, "cat": 2},
      "test": {"cat": 1},
      "val": {"bee": 2},
    }.items()
  }
  opened = labelled.open_sources(specs)
  labels = {
    name: [source[i]["label"] for i in range(len(source))]
    for name, source in opened.items()
  }
  assert labels == {"train": [0, 1, 2, 2], "test": [2], "val": [1, 1]}
  assert {k: x.labels.tolist() for k, x in opened.items()} == labels
  assert labelled.class_names(opened, 2) == ("ant", "bee", "cat")


def test_a_source_without_labels_is_named_though_its_first_record_is_corrupt(tmp_path):
  path = tmp_path / "a.array_record"
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for content in (b"no image", png(), png()):
    writer.write(content)
  writer.close()
  with pytest.raises(
    errors.UserError, match=f'--train="arrayrecord:{path}" has no lab'
  ):
    labelled.open_sources({"train": f"arrayrecord:{path}"})


def test_labels_that_number_no_classes_are_refused():
  opened = {"train": Records([3])}
  assert labelled.class_names(opened, 3) == ("0", "1", "2", "3")
  with pytest.raises(errors.UserError, match="labels go up to 1,099,511,627,776"):
    labelled.class_names(opened, 1 << 40)


def test_renumbered_labels_leave_out_those_of_no_class():
  class Named(Records):
    class_names, fingerprint, notes = ("b", "c"), "", ()
    labels = np.array([1, -1, 0])

  class Train:
    class_names, where = ("a", "b", "c"), ""

  assert classes.match(Train(), Named([1, -1, 0])).labels.tolist() == [2, -1, 1]
