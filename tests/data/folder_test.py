"""A folder becomes records: regular files, each once on a path, and their classes."""

import io
import os
import pickle
import socket

import numbered
import numpy as np
import pytest
from PIL import Image

from dinojax import errors
from dinojax.data import files, images, sources


def save(path, colour="red", size=(6, 4), mode="RGB", **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, colour).convert(mode).save(path, **options)


def open_folder(path):
  return sources.open_source(f"folder:{path}", field="config.data.source")


def labels(source):
  return [source[i]["label"] for i in range(len(source))]


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


def test_an_image_beside_class_folders_has_no_label_and_is_named(classes, caplog):
  save(classes / "preview.png")
  source = open_folder(classes)
  assert labels(source) == [0, 0, 1, 1, -1]
  assert source.class_names == ("cat", "dog")
  (line,) = caplog.messages
  assert line == (
    f'config.data.source="folder:{classes}" has no label for 1 image (the first:'
    " preview.png) beside the folders of classes"
  )


def test_sub_folders_are_no_classes_where_as_many_images_lie_beside_them(
  classes, caplog
):
  for i in range(4):
    save(classes / f"{i}.png")
  source = open_folder(classes)
  assert set(labels(source)) == {-1}
  assert source.class_names == ()
  assert "as many images lie beside them (4 of 8)" in caplog.text


def test_a_link_to_a_folder_that_it_lies_in_is_skipped_and_named(classes, caplog):
  expected = len(open_folder(classes))
  (classes / "cat" / "up").symlink_to(classes)
  (classes / "dog" / "up").symlink_to("..")
  (classes / "dog" / "itself").symlink_to(".")
  source = open_folder(classes)
  assert len(source) == expected
  (line,) = caplog.messages
  assert "skips 3 links (the first: cat/up), each to a folder that it lies in" in line


def test_links_between_two_folders_end(classes):
  (classes / "cat" / "dogs").symlink_to(classes / "dog")
  (classes / "dog" / "cats").symlink_to(classes / "cat")
  source = open_folder(classes)
  names = [os.path.relpath(source.name(i), classes) for i in range(len(source))]
  assert "cat/dogs/a.webp" in names and "dog/cats/y.bmp" in names
  assert len(names) == 8


def test_links_to_folders_and_files_elsewhere_are_followed(classes, tmp_path):
  links = tmp_path / "links"
  links.mkdir()
  (links / "cat").symlink_to(classes / "cat")
  (links / "other").mkdir()
  (links / "other" / "1.png").symlink_to(classes / "dog" / "b.png")
  source = open_folder(links)
  assert labels(source) == [0, 0, 1]
  assert source[2]["image"] == (classes / "dog" / "b.png").read_bytes()


def test_only_regular_files_are_images(classes, caplog):
  os.mkfifo(classes / "cat" / "a.jpg")
  with socket.socket(socket.AF_UNIX) as there:
    there.bind(os.path.relpath(classes / "dog" / "b.jpg"))
  (classes / "dog" / "c.jpg").symlink_to("/dev/zero")
  source = open_folder(classes)
  assert len(source) == 4
  assert "skips 3 special files (the first: cat/a.jpg)" in caplog.text


def test_a_file_that_became_a_fifo_is_a_corrupt_record(classes):
  source = open_folder(classes)
  (classes / "cat" / "y.bmp").unlink()
  os.mkfifo(classes / "cat" / "y.bmp")
  assert "is no regular file" in numbered.read(source, 1)[2]


def test_a_dangling_link_and_a_link_to_itself_are_corrupt_records(classes):
  (classes / "cat" / "a.jpg").symlink_to("nowhere.jpg")
  (classes / "cat" / "b.jpg").symlink_to("b.jpg")
  assert numbered.corrupt(open_folder(classes)) == [1, 2]


def test_a_file_over_the_limit_is_a_corrupt_record_and_is_not_read(classes):
  with open(classes / "cat" / "y.bmp", "r+b") as file:
    file.truncate(60 << 30)  # sparse: it takes no room
  source = open_folder(classes)
  reason = numbered.read(source, 1)[2]
  assert reason == "64,424,509,440 bytes, over the limit of 536,870,912 for an image"


def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path, caplog):
  name = "a\x1b]0;title\x07\nsecond line"
  save(tmp_path / name / "1.png")
  save(tmp_path / f"{name}.png")
  save(tmp_path / name / "2.png")
  source = open_folder(tmp_path)
  escaped = "a\\x1b]0;title\\x07\\nsecond line"
  assert source.class_names == (escaped,)
  assert source.name(0) == f"{tmp_path}/{escaped}.png"
  assert escaped in caplog.messages[0] and "\x1b" not in caplog.text


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


def test_other_pixels_in_files_of_the_same_names_and_sizes_are_other_data(tmp_path):
  for root, colour in (("train", "red"), ("test", "blue")):
    for i in range(3):
      save(tmp_path / root / "c" / f"{i}.bmp", colour)
  train, test = open_folder(tmp_path / "train"), open_folder(tmp_path / "test")
  assert [len(train[i]["image"]) for i in range(3)] == [134] * 3
  assert train.fingerprint != test.fingerprint
  times = os.stat(tmp_path / "test" / "c" / "1.bmp")
  save(tmp_path / "test" / "c" / "1.bmp", "green")
  os.utime(tmp_path / "test" / "c" / "1.bmp", ns=(times.st_atime_ns, times.st_mtime_ns))
  assert open_folder(tmp_path / "test").fingerprint != test.fingerprint


def test_a_large_set_is_known_by_times_and_samples_in_an_instant(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "FULL_BYTES", 1 << 20)
  path = tmp_path / "0.bmp"
  save(path, size=(600, 600))
  (tmp_path / "1.bmp").write_bytes(path.read_bytes())
  with open(tmp_path / "2.bmp", "wb") as file:
    file.truncate(1 << 40)
  before = open_folder(tmp_path).fingerprint
  assert open_folder(tmp_path).fingerprint == before
  assert before.startswith("files=3 names=") and " times=" in before
  os.utime(path, ns=(0, 1))
  touched = open_folder(tmp_path).fingerprint
  assert touched.partition(" times=")[0] == before.partition(" times=")[0]
  assert touched != before
  save(tmp_path / "1.bmp", "blue", size=(600, 600))
  assert open_folder(tmp_path).fingerprint.partition(" times")[0] not in touched


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
