"""Images of tar files are read by index, and as ingest reads them in order."""

import functools
import gzip
import io
import lzma
import os
import pickle
import tarfile

import numbered
import numpy as np
import pytest
from PIL import Image

from dinojax import errors
from dinojax.data import class_labels, files, sources, tar_members, tar_shards


def png(value):
  file = io.BytesIO()
  Image.new("RGB", (3, 2), (int(value), 0, 0)).save(file, "PNG")
  return file.getvalue()


def write(path, entries, **options):
  with tarfile.open(path, "w", **options) as tar:
    for name, content in entries:
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))


def open_source(path):
  return sources.open_source(f"tar:{path}", field="config.data.sources[0]")


def values(source):
  return [
    int(numbered.read(source, i, attempts=1)[0][0, 0, 0]) for i in range(len(source))
  ]


def labels(source):
  return [source[i]["label"] for i in range(len(source))]


def assert_as_in_order(source, path):
  """Sources by index and the reader in order know the same of one file."""
  in_order = list(tar_shards.read(str(path)))
  assert len(in_order) == len(source)
  for i, image in enumerate(in_order):
    assert source.name(i) == f"{path}{':' if image.key else ''}{image.key}"
    if image.content is None:
      with pytest.raises(sources.UNREADABLE):
        source[i]
    else:
      assert source[i]["image"] == image.content


@pytest.fixture
def shards(tmp_path):
  entries = []
  for i in range(7):
    entries += [(f"d.x/{i:03}.json", b"{}"), (f"d.x/{i:03}.png", png(10 * i))]
    entries += [(f"d.x/{i:03}.cls", str(i % 3).encode())]
  write(tmp_path / "b.tar", entries[12:])
  write(tmp_path / "a.tar", entries[:12])
  return tmp_path


def test_images_follow_in_the_order_of_files_with_numbers_as_classes(shards):
  source = open_source(shards / "*.tar")
  assert values(source) == [0, 10, 20, 30, 40, 50, 60]
  assert labels(source) == [0, 1, 2, 0, 1, 2, 0]
  assert source.class_names == ("0", "1", "2")
  assert source.name(4) == f"{shards}/b.tar:d.x/004"
  copy = pickle.loads(pickle.dumps(source))
  assert values(copy) == values(source) and copy.fingerprint == source.fingerprint
  assert_as_in_order(open_source(shards / "a.tar"), shards / "a.tar")


def test_the_index_is_written_once_and_again_when_a_file_changes(shards):
  open_source(shards / "*.tar")
  (path,) = shards.glob(".dinojax-index-*")
  written = path.stat().st_ino
  source = open_source(shards / "*.tar")
  assert path.stat().st_ino == written
  write(shards / "a.tar", [("0.png", png(99))])
  with pytest.raises(OSError, match=r"a\.tar' has changed since the run began"):
    pickle.loads(pickle.dumps(source))[0]
  assert values(open_source(shards / "*.tar")) == [99, 40, 50, 60]


def test_an_index_is_never_that_of_other_files_of_equal_size_and_time(tmp_path):
  path = tmp_path / "0.tar"
  for value in (1, 2):
    write(path, [("a.png", png(value)), ("a.cls", str(value).encode())])
    os.utime(path, (0, 0))
    assert labels(open_source(path)) == [value]


@pytest.mark.parametrize(
  "options",
  [{"format": tarfile.GNU_FORMAT}, {"format": tarfile.PAX_FORMAT}],
  ids=["gnu", "pax"],
)
def test_headers_of_every_kind_are_read(tmp_path, options):
  path = tmp_path / "0.tar"
  names = ["a.png", f"{'long' * 60}/b.png", "ü.png", "./c.png"]
  with tarfile.open(path, "w", **options) as tar:
    for i, name in enumerate(names):
      member = tarfile.TarInfo(name)
      member.size, member.mtime = len(png(i)), 1.5  # a fraction is one of pax's
      tar.addfile(member, io.BytesIO(png(i)))
    folder = tarfile.TarInfo("folder.png")
    folder.type = tarfile.DIRTYPE
    tar.addfile(folder)
  source = open_source(path)
  assert values(source) == [0, 1, 2, 3]
  assert [source.name(i) for i in range(4)] == [
    f"{path}:{name.removesuffix('.png')}" for name in names
  ]
  assert_as_in_order(source, path)


def test_a_usual_header_is_read_without_tarfile_and_as_by_tarfile(tmp_path):
  path = tmp_path / "0.tar"
  names = ["a.png", "f/" * 60 + "b.png", "UPPER.PNG", "c.txt"]
  write(path, [(name, b"x" * i) for i, name in enumerate(names)], format=0)
  with tarfile.open(path) as tar:
    for info in tar:
      with open(path, "rb") as file:
        file.seek(info.offset)
        member = tar_members._usual(file.read(512), info.offset)
      assert member[:4] == (info.name, info.offset, info.offset_data, info.size)


def test_every_image_counts_whatever_dots_its_name_has(tmp_path):
  names = ["22.05.png", "22.06.png", "IMG_2020.01.05.png", "frame.left.png"]
  names += ["frame.right.png", "plain.png", "v1.2/x.png"]
  entries = [(name, png(i)) for i, name in enumerate(names)]
  entries.insert(1, ("22.05.cls", b"5"))  # of its own name
  entries.insert(6, ("frame.cls", b"7"))  # of the sample
  entries += [(".hidden.png", png(99)), ("f/._a.png", png(99)), ("nodot", b"")]
  write(tmp_path / "0.tar", entries)
  source = open_source(tmp_path / "0.tar")
  assert values(source) == [0, 1, 2, 3, 4, 5, 6]
  assert labels(source) == [5, -1, -1, 7, 7, -1, -1]
  keys = [source.name(i).partition(":")[2] for i in range(7)]
  assert keys == [name.removesuffix(".png") for name in names]
  assert_as_in_order(source, tmp_path / "0.tar")


def test_several_images_of_a_sample_and_of_one_name_all_count(tmp_path):
  entries = [("a.png", png(1)), ("a.jpg", png(2)), ("a.png", png(3)), ("b.png", png(4))]
  write(tmp_path / "0.tar", entries)
  source = open_source(tmp_path / "0.tar")
  assert values(source) == [2, 1, 3, 4]
  assert_as_in_order(source, tmp_path / "0.tar")


@pytest.mark.parametrize(
  ("text", "label"),
  [
    *((b"7", 7), (b" 7\n", 7), (b"-5", class_labels.NO_LABEL)),
    *((b"cat", class_labels.NOT_A_CLASS), (b"", class_labels.NOT_A_CLASS)),
    *((str(2**63 - 1).encode(), 2**63 - 1), (b"9" * 60, class_labels.NOT_A_CLASS)),
    *((str(2**63).encode(), class_labels.NOT_A_CLASS),),
    *((b"9" * 5000, class_labels.NOT_A_CLASS),),
  ],
)
def test_what_a_cls_holds_is_a_label_or_none(tmp_path, text, label):
  write(tmp_path / "0.tar", [("a.cls", text), ("a.png", png(1)), ("b.png", png(2))])
  one, other = tar_shards.read(str(tmp_path / "0.tar"))
  assert (one.label, other.label) == (label, class_labels.NO_LABEL)
  source = open_source(tmp_path / "0.tar")
  is_class = 0 <= label < class_labels.MAX_CLASSES
  assert labels(source) == [label if is_class else -1, -1]
  assert source.class_names == (tuple(map(str, range(8))) if is_class else ())


def test_names_that_are_no_utf8_or_control_the_terminal_are_escaped(tmp_path):
  name = os.fsdecode(b"caf\xe9\x1b[31m\n.png")
  write(tmp_path / "0.tar", [(name, png(1))], format=tarfile.GNU_FORMAT)
  source = open_source(tmp_path / "0.tar")
  assert source.name(0) == f"{tmp_path}/0.tar:caf\\xe9\\x1b[31m\\n"
  assert_as_in_order(source, tmp_path / "0.tar")


@pytest.mark.parametrize("lost", [100, 1024 * 2 + 600, 1024 * 3])
def test_damage_is_one_corrupt_record_behind_the_last_whole_image(tmp_path, lost):
  path = tmp_path / "0.tar"
  write(path, [(f"{i}.png", png(i)) for i in range(5)])
  data = path.read_bytes().rstrip(b"\0")
  path.write_bytes(data[: len(data) - lost])
  source = open_source(path)
  assert 1 < len(source) < 6
  last = len(source) - 1
  assert numbered.corrupt(source) == [last]
  assert source.name(last) == str(path)
  assert "damaged" in numbered.read(source, last)[2]
  assert_as_in_order(source, path)


@pytest.mark.parametrize("position", [0, 1])
def test_a_file_among_others_that_is_no_tar_file_is_one_corrupt_record(
  shards, position
):
  (shards / f"{'Ac'[position]}.tar").write_bytes(b"text" * 500)
  source = open_source(shards / "*.tar")
  assert numbered.corrupt(source) == [[0], [7]][position]


def test_links_and_devices_are_corrupt_records_and_not_passed_over(tmp_path):
  path = tmp_path / "0.tar"
  with tarfile.open(path, "w") as tar:
    for kind, name in ((tarfile.SYMTYPE, "a"), (tarfile.LNKTYPE, "b")):
      member = tarfile.TarInfo(f"{name}.png")
      member.type, member.linkname = kind, "z.png"
      tar.addfile(member)
    member = tarfile.TarInfo("c.png")
    member.type = tarfile.FIFOTYPE
    tar.addfile(member)
    member = tarfile.TarInfo("z.png")
    member.size = len(png(9))
    tar.addfile(member, io.BytesIO(png(9)))
  source = open_source(path)
  assert numbered.corrupt(source, attempts=64) == [0, 1, 2]
  troubles = [image.trouble for image in tar_shards.read(str(path))]
  assert troubles == ["a link to z.png, and no file"] * 2 + ["no regular file", ""]


def sparse_tar(path, size, data):
  """A GNU tar file with one sparse member that begins with `data`."""
  member = tarfile.TarInfo("a.png")
  member.type, member.size = tarfile.GNUTYPE_SPARSE, len(data)
  header = bytearray(member.tobuf(tarfile.GNU_FORMAT))

  def number(value):
    octal = value < 8**11
    return b"%011o\0" % value if octal else b"\x80" + value.to_bytes(11, "big")

  header[386:410] = number(0) + number(len(data))  # the only piece
  header[483:495] = number(size)
  header[148:156] = b" " * 8
  header[148:156] = b"%06o\0 " % sum(header)
  padding = bytes(-len(data) % 512)
  path.write_bytes(bytes(header) + data + padding + bytes(1024))


def test_a_sparse_member_is_read_up_to_the_limit(tmp_path):
  sparse_tar(tmp_path / "0.tar", len(png(5)) + 1000, png(5))
  source = open_source(tmp_path / "0.tar")
  assert source[0]["image"] == png(5) + bytes(1000)
  assert_as_in_order(source, tmp_path / "0.tar")
  sparse_tar(tmp_path / "0.tar", 60 << 30, png(5))
  source = open_source(tmp_path / "0.tar")
  reason = "64,424,509,440 bytes, over the limit of 536,870,912 for an image"
  with pytest.raises(ValueError, match=reason):
    source[0]
  assert [image.trouble for image in tar_shards.read(str(tmp_path / "0.tar"))] == [
    reason
  ]


class Zeros(io.RawIOBase):
  """So many zeros, for a member that no test holds in memory."""

  def __init__(self, size):
    self.left = size

  def read(self, size):
    size = min(size, self.left)
    self.left -= size
    return bytes(size)


@pytest.mark.parametrize(
  "compress", [gzip.open, functools.partial(lzma.open, preset=0)], ids=["gz", "xz"]
)
def test_a_compressed_member_over_the_limit_is_never_held(
  tmp_path, monkeypatch, compress
):
  monkeypatch.setattr(files, "MAX_RECORD", 1 << 16)
  path = tmp_path / "0.tar"
  with compress(path, "wb") as file, tarfile.open(fileobj=file, mode="w|") as tar:
    for name, size in (("a.png", 1 << 24), ("a.cls", 1 << 24)):
      member = tarfile.TarInfo(name)
      member.size = size
      tar.addfile(member, Zeros(size))
    member = tarfile.TarInfo("b.png")
    member.size = len(png(3))
    tar.addfile(member, io.BytesIO(png(3)))
  with numbered.memory_below(1 << 23):
    large, small = tar_shards.read(str(path))
  assert "over the limit of 65,536 for an image" in large.trouble
  assert (large.content, large.label) == (None, class_labels.NOT_A_CLASS)
  assert small.content == png(3)


@pytest.mark.parametrize("kind", [b"L", b"x", b"g", b"K"])
@pytest.mark.parametrize("compress", [None, gzip.open], ids=["plain", "gz"])
def test_a_header_that_claims_gigabytes_is_damage(tmp_path, kind, compress):
  member = tarfile.TarInfo("././@LongLink")
  member.type, member.size = kind, 60 << 30
  header = member.tobuf(tarfile.GNU_FORMAT)
  write(tmp_path / "0.tar", [("a.png", png(1))])
  data = (tmp_path / "0.tar").read_bytes()
  data = data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512) + header
  with (compress or open)(tmp_path / "0.tar", "wb") as file:
    file.write(data)
  sound, damage = tar_shards.read(str(tmp_path / "0.tar"))
  assert sound.content == png(1)
  assert "a header that claims 64,424,509,440 bytes" in damage.trouble


def test_a_header_of_negative_size_ends(tmp_path):
  member = tarfile.TarInfo("a.png")
  header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
  header[124:136] = (-1024).to_bytes(12, "big", signed=True)
  header[148:156] = b" " * 8
  header[148:156] = b"%06o\0 " % sum(header)
  (tmp_path / "0.tar").write_bytes(bytes(header) * 3 + bytes(1024))
  assert all(
    image.content is None for image in tar_shards.read(str(tmp_path / "0.tar"))
  )


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_a_compressed_file_is_read_in_order_and_refused_by_index(tmp_path, mode):
  path = tmp_path / f"0.tar.{mode}"
  with tarfile.open(path, f"w:{mode}") as tar:
    for i in range(3):
      member = tarfile.TarInfo(f"{i}.png")
      member.size = len(png(i))
      tar.addfile(member, io.BytesIO(png(i)))
  assert [image.content for image in tar_shards.read(str(path))] == [
    *map(png, range(3))
  ]
  with pytest.raises(errors.UserError, match=r"is compressed.*decompress it") as raised:
    open_source(path)
  assert "\n" not in str(raised.value)
  damaged = bytearray(path.read_bytes())
  damaged[len(damaged) // 2] ^= 255
  path.write_bytes(damaged)
  *_, last = tar_shards.read(str(path))
  assert last.content is None and last.trouble


def test_the_fingerprint_moves_with_the_data_not_with_the_place(shards, tmp_path):
  before = open_source(shards / "*.tar").fingerprint
  moved = tmp_path / "moved"
  moved.mkdir()
  for name in ("a.tar", "b.tar"):
    (moved / name).write_bytes((shards / name).read_bytes())
  assert open_source(moved / "*.tar").fingerprint == before
  data = bytearray((moved / "a.tar").read_bytes())
  data[data.index(b"IDAT") + 9] ^= 1
  (moved / "a.tar").write_bytes(data)
  assert open_source(moved / "*.tar").fingerprint != before


def test_what_is_no_set_of_tar_files_is_one_line(tmp_path):
  (tmp_path / "text.tar").write_bytes(b"text" * 500)
  write(tmp_path / "none.tar", [("a.json", b"{}")])
  os.mkfifo(tmp_path / "fifo.tar")
  (tmp_path / "folder.tar").mkdir()
  for name, reason in [
    ("nothing.tar", "matches no file"),
    ("text.tar", "without an image"),
    ("none.tar", "without an image"),
    ("fifo.tar", "no regular file"),
    ("folder.tar", "is a folder"),
  ]:
    with pytest.raises(errors.UserError, match=reason) as raised:
      open_source(tmp_path / name)
    assert str(raised.value).startswith('config.data.sources[0]="tar:')
    assert "\n" not in str(raised.value)


def test_a_file_that_is_gone_is_out_of_reach_and_its_records_have_names(shards):
  source = open_source(shards / "*.tar")
  (shards / "a.tar").unlink()
  with pytest.raises(errors.TemporaryError, match=r"a\.tar' was removed since the run"):
    numbered.read(source, 0)
  assert source.name(2) == f"{shards}/a.tar#2"


def test_many_members_are_indexed_in_little_time_and_memory(tmp_path):
  header = tarfile.TarInfo("a.png")
  block = header.tobuf(tarfile.USTAR_FORMAT)
  (tmp_path / "0.tar").write_bytes(block * 20_000 + bytes(1024))
  source = open_source(tmp_path / "0.tar")
  assert len(source) == 20_000
  assert isinstance(source._index.values(0), np.memmap)
