"""Published layouts of segmentation sets: pairs, values, classes; faults are a line."""

import numpy as np
import pytest
from PIL import Image

from dinojax import errors
from dinojax.data import dense_records, label_maps, published, sources


def write(path, values, *, palette=False):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(np.asarray(values, np.uint8))
  if palette:
    image = image.convert("P")
    image.putdata(np.asarray(values).ravel().tolist())
    image.putpalette(bytes(range(256)) * 3)
  image.save(path)


def picture(path):
  write(path, np.full((4, 6, 3), 80))


def maps_of(source):
  return [np.unique(source[i]["label_map"]).tolist() for i in range(len(source))]


def open_source(spec):
  return sources.open_source(spec, field="--train")


@pytest.fixture
def ade20k(tmp_path):
  for split in ("training", "validation"):
    for i in range(2):
      picture(tmp_path / "images" / split / f"ADE_{i}.jpg")
      values = np.full((4, 6), 150 * i)
      values[0] = 1
      write(tmp_path / "annotations" / split / f"ADE_{i}.png", values)
  return tmp_path


def test_ade20k_counts_classes_from_1_and_0_is_none(ade20k):
  source = open_source(f"ade20k:{ade20k}:val")
  assert isinstance(source, sources.DenseSource)
  assert maps_of(source) == [[0, 255], [0, 149]]
  assert source.name(0).endswith("images/validation/ADE_0.jpg")
  assert len(source.map_classes) == 150 and source.map_classes[-1] == "150"
  header = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
  rows = "".join(f"{i}\t0.1\t1\t1\t0\tthing {i}, object {i}\n" for i in range(150))
  (ade20k / published.ADE20K_NAMES).write_text(header + rows)
  named = open_source(f"ade20k:{ade20k}:val")
  assert named.map_classes[149] == "thing 149"
  assert named.fingerprint != source.fingerprint
  assert open_source(f"ade20k:{ade20k}:train").name(1).endswith("training/ADE_1.jpg")


def test_a_value_beyond_ade20ks_classes_is_a_corrupt_record(ade20k):
  write(ade20k / "annotations" / "training" / "ADE_0.png", np.full((4, 6), 151))
  source = open_source(f"ade20k:{ade20k}:train")
  with pytest.raises(ValueError, match="has the value 150, and classes end at 149"):
    dense_records.LabelMaps(150).read(source[0])


@pytest.fixture
def voc(tmp_path):
  lists = tmp_path / "ImageSets" / "Segmentation"
  lists.mkdir(parents=True)
  (lists / "train.txt").write_text("2007_1\n2007_2\nlost\n")
  (lists / "trainaug.txt").write_text("2007_3\n")
  for i in range(1, 4):
    picture(tmp_path / "JPEGImages" / f"2007_{i}.jpg")
    kind = "SegmentationClassAug" if i == 3 else "SegmentationClass"
    values = np.tile([0, 0, i, 20, 255, 255], (4, 1))
    write(tmp_path / kind / f"2007_{i}.png", values, palette=True)
  return tmp_path


def test_voc_has_the_listed_images_and_numbers_of_the_palette(voc):
  source = open_source(f"voc:{voc}:train")
  assert maps_of(source) == [[0, 1, 20, 255], [0, 2, 20, 255]]
  assert source.map_classes[20] == "tvmonitor" and len(source.map_classes) == 21
  assert source.notes == ("leaves out 1 listed image (the first: lost) not there",)
  assert maps_of(open_source(f"voc:{voc}:trainaug")) == [[0, 3, 20, 255]]
  with pytest.raises(errors.UserError, match="cannot be read; it has train, trainaug"):
    open_source(f"voc:{voc}:other")


@pytest.fixture
def cityscapes(tmp_path):
  for city in ("aachen", "ulm"):
    stem = f"train/{city}/{city}_1"
    picture(tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png")
    values = np.tile([0, 6, 7, 33, 255, 21], (4, 1))
    write(tmp_path / "gtFine" / f"{stem}_gtFine_labelIds.png", values)
    write(tmp_path / "gtFine" / f"{stem}_gtFine_instanceIds.png", values)
  return tmp_path


def test_cityscapes_has_19_of_its_label_ids(cityscapes):
  source = open_source(f"cityscapes:{cityscapes}:train")
  assert source[0]["label_map"][0].tolist() == [255, 255, 0, 18, 255, 8]
  assert len(source) == 2 and len(source.map_classes) == 19
  assert source.map_classes[:2] == ("road", "sidewalk")
  stem = cityscapes / "gtFine/train/ulm/ulm_1_gtFine_labelIds.png"
  write(stem, np.full((4, 6), 34))
  with pytest.raises(ValueError, match="has the value 34, and classes end at 18"):
    dense_records.LabelMaps(19).read(source[1])


def test_images_without_a_map_are_left_out_and_none_is_an_error(cityscapes):
  (cityscapes / "gtFine/train/ulm/ulm_1_gtFine_labelIds.png").unlink()
  source = open_source(f"cityscapes:{cityscapes}:train")
  assert source.notes[0].startswith("leaves out 1 image (the first: ulm/ulm_1_left")
  (cityscapes / "gtFine/train/aachen/aachen_1_gtFine_labelIds.png").unlink()
  with pytest.raises(errors.UserError) as raised:
    open_source(f"cityscapes:{cityscapes}:train")
  assert (
    "none of 2 images has its label map, such as aachen/aachen_1_gtFine_labelIds"
    in (str(raised.value))
  )


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("ade20k:{}:test", "must be ade20k:FOLDER:SPLIT, SPLIT one of train, val"),
    ("ade20k:{}", "must be ade20k:FOLDER:SPLIT, SPLIT one of train, val"),
    ("ade20k:{}/none:val", "/none/images/validation does not exist; give a folder"),
    ("voc:{}", "must be voc:FOLDER:SPLIT"),
    ("voc:{}/none:val", "val.txt cannot be read; give a year's own folder"),
    ("cityscapes:{}:test", "must be cityscapes:FOLDER:SPLIT, SPLIT one of train, val"),
    ("ade20k:gs://bucket:val", "is a bucket, and only files are read"),
  ],
)
def test_what_gives_no_source_is_one_line(tmp_path, spec, message):
  with pytest.raises(errors.UserError) as raised:
    open_source(spec.format(tmp_path))
  assert message in str(raised.value) and "\n" not in str(raised.value)


def test_corrupt_maps_are_reported_with_a_reason(ade20k):
  (ade20k / "annotations" / "training" / "ADE_1.png").write_bytes(b"")
  source = open_source(f"ade20k:{ade20k}:train")
  with pytest.raises(ValueError, match="its label map has zero bytes"):
    source[1]
  assert label_maps.IGNORE == 255
