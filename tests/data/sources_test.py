"""A folder of anything becomes records, and a user's mistake becomes one line."""

import io
import os
import pickle

import numbered
import numpy as np
import pytest
from PIL import Image

from dinojax import errors
from dinojax.data import images, sources


def save(path, colour="red", size=(6, 4), mode="RGB", **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, colour).convert(mode).save(path, **options)


def open_folder(path):
  return sources.open_source(f"folder:{path}", field="config.data.source")


@pytest.fixture
def classes(tmp_path):
  root = tmp_path / "classes"
  save(root / "dog" / "b.png", "blue")
  save(root / "cat" / "2021" / "z.JPG", "green")
  save(root / "dog" / "a.webp", "red")
  save(root / "cat" / "y.bmp", "black")
  (root / "cat" / "notes.txt").write_text("not an image")
  (root / "empty").mkdir()
  save(root / ".trash" / "c.png")
  save(root / "dog" / "._b.png")
  return root


def test_sorted_sub_folders_are_the_classes(classes):
  source = open_folder(classes)
  names = [os.path.relpath(source.name(i), classes) for i in range(len(source))]
  assert names == ["cat/2021/z.JPG", "cat/y.bmp", "dog/a.webp", "dog/b.png"]
  assert [source[i]["label"] for i in range(4)] == [0, 0, 1, 1]
  assert source.class_names == ("cat", "dog")


def test_an_image_directly_in_the_folder_makes_it_flat(classes):
  save(classes / "preview.png")
  source = open_folder(classes)
  assert len(source) == 5
  assert {source[i]["label"] for i in range(5)} == {-1}
  assert source.class_names == ()


def test_a_pickled_source_reads_the_same(classes):
  source = open_folder(classes)
  copy = pickle.loads(pickle.dumps(source))
  assert [copy[i] for i in range(4)] == [source[i] for i in range(4)]
  assert copy.fingerprint == source.fingerprint


def test_the_fingerprint_moves_with_the_data_not_with_the_place(classes, tmp_path):
  before = open_folder(classes).fingerprint
  moved = classes.rename(tmp_path / "moved")
  assert open_folder(moved).fingerprint == before
  (moved / "cat" / "y.bmp").rename(moved / "cat" / "x.bmp")
  renamed = open_folder(moved).fingerprint
  (moved / "dog" / "b.png").write_bytes(b"longer or shorter")
  resized = open_folder(moved).fingerprint
  assert len({before, renamed, resized}) == 3


def test_what_is_wrong_with_a_folder_is_one_line_of_its_own(tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "text").mkdir()
  (tmp_path / "text" / "a.txt").write_text("text")
  messages = set()
  for path in ("missing", "text/a.txt", "empty", "text"):
    with pytest.raises(errors.UserError) as raised:
      open_folder(tmp_path / path)
    message = str(raised.value)
    assert message.startswith(f'config.data.source="folder:{tmp_path / path}" ')
    assert "\n" not in message
    messages.add(message.removeprefix(f'config.data.source="folder:{tmp_path / path}"'))
  assert len(messages) == 4


@pytest.mark.parametrize(
  "spec", ["", "folder:", "/data/images", "tfds:mnist", "embedded:digits", "s3:bucket"]
)
def test_an_unknown_source_is_told_what_there_is(spec):
  with pytest.raises(errors.UserError, match=r"config.knn.train=.*folder:PATH, tfds:"):
    sources.open_source(spec, field="config.knn.train")


@pytest.mark.parametrize(
  ("spec", "meant"),
  [
    ("photos", "folder:"),
    ("a.array_record-00000-of-00001", "arrayrecord:"),
    ("*.array_record*", "arrayrecord:"),
  ],
)
def test_a_path_without_its_kind_is_told_the_kind(tmp_path, monkeypatch, spec, meant):
  (tmp_path / "photos").mkdir()
  (tmp_path / "a.array_record-00000-of-00001").touch()
  (tmp_path / "notes.txt").touch()
  monkeypatch.setenv("HOME", str(tmp_path))
  for path in (f"{tmp_path}/{spec}", f"~/{spec}"):
    with pytest.raises(errors.UserError) as raised:
      sources.open_source(path, field="--images")
    assert str(raised.value).endswith(f"test; did you mean {meant}{path}?")
  for path in (f"{tmp_path}/none/{spec}", f"{tmp_path}/notes.txt"):
    with pytest.raises(errors.UserError, match=r"embedded:digits:test$"):
      sources.open_source(path, field="--images")


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


@pytest.fixture
def zoo(tmp_path):
  """A flat folder: 3 unreadable files, then 9 images of every odd kind."""
  root = tmp_path / "zoo"
  save(root / "a_truncated.jpg", size=(64, 64))
  whole = (root / "a_truncated.jpg").read_bytes()
  (root / "a_truncated.jpg").write_bytes(whole[: len(whole) // 2])
  (root / "b_zero.png").write_bytes(b"")
  (root / "c_text.webp").write_text("<html>404</html>")
  save(root / "d_grey.jpg", mode="L")
  save(root / "e_cmyk.jpg", mode="CMYK")
  save(root / "f_palette.png", mode="P")
  Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(root / "g_16bit.png")
  frames = {"save_all": True, "append_images": [Image.new("RGB", (6, 4), "blue")]}
  save(root / "h_animated.webp", **frames)
  save(root / "i_animated.png", **frames)
  save(root / "j_one.png", size=(1, 1))
  save(root / "k_png_in_truth.jpg", format="PNG")
  save(root / "l_rgba.png", mode="RGBA")
  return root


def test_odd_images_are_read_and_damaged_ones_replaced(zoo):
  source = open_folder(zoo)
  assert len(source) == 12
  for index in range(12):
    image, label, reason = numbered.read(source, index)
    assert bool(reason) == (index < 3)
    assert label == -1
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    if index >= 3:
      np.testing.assert_array_equal(image, images.decode(source[index]["image"]))


def test_a_vanished_file_is_an_unreadable_record(zoo):
  source = open_folder(zoo)
  (zoo / "l_rgba.png").unlink()
  assert "No such file" in numbered.read(source, 11)[2]


def test_a_name_that_is_not_utf8_can_be_logged(tmp_path):
  buffer = io.BytesIO()
  Image.new("RGB", (2, 2)).save(buffer, "PNG")
  path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
  with open(path, "wb") as file:
    file.write(buffer.getvalue())
  source = open_folder(tmp_path)
  source.name(0).encode()
  assert not numbered.corrupt(source)
