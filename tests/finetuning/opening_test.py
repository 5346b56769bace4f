"""Sources are opened for their task; those that do not suit it are one line."""

import pytest
from PIL import Image

from dinojax import errors
from dinojax.finetuning import opening

DIGITS = "embedded:digits:train"


def open_sources(task, **specs):
  return opening.open_sources(task, specs, workers=0, progress=lambda: None)


def table(folder, *labels):
  """A CSV file of an image for each label."""
  lines = ["file,label"]
  for i, label in enumerate(labels):
    Image.new("RGB", (4, 4)).save(folder / f"{i}.png")
    lines.append(f"{i}.png,{label}")
  path = folder / "table.csv"
  path.write_text("\n".join(lines))
  return f"csv:{path}"


def test_classes_of_a_csv_file_are_those_of_folders(tmp_path):
  opened, names = open_sources("classes", train=table(tmp_path, "dog", "cat"))
  assert names == ("cat", "dog")
  assert opened["train"].labels.tolist() == [1, 0]
  one = table(tmp_path, "dog", "dog;cat")
  with pytest.raises(errors.UserError, match="has images of 1 class; give at least 2"):
    open_sources("classes", train=one)


def test_segmentation_needs_label_maps(tmp_path):
  _, names = open_sources("segmentation", train="embedded:scenes:train")
  assert len(names) == 11
  with pytest.raises(errors.UserError, match="no label maps, which --task=segment"):
    open_sources("segmentation", train=table(tmp_path, "a", "b"))


def test_sets_of_labels_need_a_csv_file_that_has_some(tmp_path):
  opened, names = open_sources("labels", train=table(tmp_path, "dog;cat", ""))
  assert names == ("cat", "dog")
  assert opened["train"].sets[opened["train"].labels].tolist() == [[1, 1], [0, 0]]
  with pytest.raises(errors.UserError, match="has no label at all; give some"):
    open_sources("labels", train=table(tmp_path, "", ""))
  with pytest.raises(errors.UserError, match="one label for each image; give csv:FILE"):
    open_sources("labels", train=DIGITS)
