"""Folders of images are paired with folders of label maps, or one line says why not."""

import io

import numpy as np
import pytest
from PIL import Image

from dinojax import errors
from dinojax.data import label_maps, sources


def write(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path):
  """Images a, b/c and d; label maps a, b/c and e."""
  for i, name in enumerate(("a.jpg", "b/c.png", "d.webp")):
    write(tmp_path / "images" / name, np.full((6, 8, 3), 40 * i))
  for i, name in enumerate(("a.png", "b/c.png", "e.png")):
    write(tmp_path / "maps" / name, [[i, 255], [0, 7]])
  return tmp_path


def open_pairs(folder, images="images", masks="maps", more=""):
  spec = f"folder:{folder}/{images}?masks={folder}/{masks}{more}"
  return sources.open_source(spec, field="--train")


def values(source):
  return [
    label_maps.decode(source[i]["label_map"]).tolist() for i in range(len(source))
  ]


def test_images_and_label_maps_of_one_name_are_pairs_and_others_are_left_out(folders):
  source = open_pairs(folders)
  assert isinstance(source, sources.DenseSource)
  assert values(source) == [[[0, 255], [0, 7]], [[1, 255], [0, 7]]]
  assert [source.name(i)[len(str(folders)) :] for i in range(2)] == [
    "/images/a.jpg",
    "/images/b/c.png",
  ]
  assert np.array_equal(
    np.asarray(Image.open(io.BytesIO(source[1]["image"]))), np.full((6, 8, 3), 40)
  )
  assert source.notes[-2:] == (
    "leaves out 1 image (the first: d) without a label map",
    "leaves out 1 label map (the first: e.png) without an image",
  )
  assert not isinstance(
    sources.open_source(f"folder:{folders}/images", field="f"), sources.DenseSource
  )


def test_a_value_that_means_unlabelled_is_no_class(folders):
  source = open_pairs(folders, more="&ignore=0")
  assert values(source) == [[[255, 255], [255, 7]], [[1, 255], [255, 7]]]
  assert source.fingerprint != open_pairs(folders).fingerprint


def test_label_maps_may_lie_below_the_images_and_are_none_themselves(folders):
  (folders / "maps").rename(folders / "images" / "maps")
  source = open_pairs(folders, masks="images/maps")
  assert [source.name(i).rpartition("/")[2] for i in range(len(source))] == [
    "a.jpg",
    "c.png",
  ]
  assert "leaves out 1 image (the first: d) without" in source.notes[-2]


def test_other_label_maps_are_other_data(folders):
  before = open_pairs(folders)
  write(folders / "maps" / "a.png", [[3, 3]])
  after = open_pairs(folders)
  assert before.fingerprint != after.fingerprint
  assert before.fingerprint.split()[:3] == after.fingerprint.split()[:3]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(masks="other"), "maps of no name: none of 3 images has a label map of its n"),
    (dict(masks="none"), "/none does not exist"),
    (dict(images="none"), "/none?masks="),
    (dict(more="&ignore=300"), "must be folder:IMAGES?masks=FOLDER, perhaps with &ign"),
    (dict(more="&ignore="), "must be folder:IMAGES?masks=FOLDER, perhaps with &ignore"),
  ],
)
def test_what_gives_no_pair_is_one_line(folders, changes, message):
  write(folders / "other" / "x.png", [[1]])
  with pytest.raises(errors.UserError) as raised:
    open_pairs(folders, **changes)
  text = str(raised.value)
  assert message.removeprefix("maps of no name: ") in text and "\n" not in text


def test_no_folder_of_label_maps_is_one_line(folders):
  with pytest.raises(errors.UserError, match=r'^f="folder:.*" must be folder:IMAGES'):
    sources.open_source(f"folder:{folders}/images?masks=", field="f")
