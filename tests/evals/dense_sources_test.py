"""Sources with label maps are told from others, and their classes counted."""

import numpy as np
import pytest
from absl import flags
from PIL import Image

from dinojax import errors
from dinojax.data import label_maps
from dinojax.evals import dense_sources


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()  # Grain's, which its workers read


def test_dense_tasks_need_label_maps(tmp_path):
  specs = {name: f"embedded:scenes:{name}" for name in ("train", "test")}
  opened = dense_sources.open_sources(specs, task="knn_segmentation")
  assert [len(source) for source in opened.values()] == [1024, 128]
  names = dense_sources.class_names(opened, workers=0, progress=None)
  assert names == ("background", *"0123456789")
  with pytest.raises(errors.UserError) as raised:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    wrong = specs | {"test": f"folder:{tmp_path}"}
    dense_sources.open_sources(wrong, task="knn_segmentation")
  assert str(raised.value) == (
    f'--test="folder:{tmp_path}" has no label maps, which knn_segmentation needs;'
    " give a source such as folder:IMAGES?masks=FOLDER or embedded:scenes:train"
  )


class Maps:
  """Label maps without names of classes; some are corrupt."""

  where, map_classes = '--train="maps"', ()

  def __init__(self, *values):
    self.values = values

  def __len__(self):
    return len(self.values)

  def __getitem__(self, index):
    value = self.values[index]
    return {"label_map": b"" if value is None else np.full((2, 2), value, np.uint8)}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.process)])
def test_classes_without_names_are_numbered_up_to_the_largest_of_both(workers):
  opened = {
    "train": Maps(*[i % 3 for i in range(2 * dense_sources.BLOCK)], None),
    "test": Maps(4, label_maps.IGNORE, None),
  }
  blocks = []  # known to a watchdog
  names = dense_sources.class_names(
    opened, workers=workers, progress=lambda: blocks.append(None)
  )
  assert names == ("0", "1", "2", "3", "4") and len(blocks) == 4


def test_label_maps_without_any_class_are_one_line():
  empty, whole = Maps(label_maps.IGNORE, None), Maps(1)
  for train, test in ((empty, whole), (whole, empty)):
    opened = {"train": train, "test": test}
    with pytest.raises(errors.UserError, match="no label map is readable"):
      dense_sources.class_names(opened, workers=0, progress=lambda: None)


def test_classes_that_no_head_can_learn_are_named(caplog):
  opened = {"train": Maps(0, 3), "test": Maps(0, 1, 3, 6)}
  names = dense_sources.class_names(opened, workers=0, progress=lambda: None)
  assert len(names) == 7
  (line,) = caplog.messages
  assert "pixels of class 1, 6, of which" in line
