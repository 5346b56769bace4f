"""Every kind of input yields its images and labels, and reports damage."""

import io
import os
import tarfile

import ingest_jobs
import numpy as np
import pyarrow
import pytest
from array_record.python import array_record_module
from PIL import Image
from pyarrow import parquet

from dinojax import errors
from dinojax.curation import inputs
from dinojax.data import class_labels


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


@pytest.fixture
def contents(pictures):
  return [png(pixels) for pixels in pictures[:6]]


def write_tar(path, files, mode="w"):
  with tarfile.open(path, mode) as tar:
    for name, content in files:
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))


def read(spec, tmp_path, rows=None, **changes):
  job = ingest_jobs.make_job(tmp_path, **changes)
  parts = inputs.plan([spec], [], job.settings)
  return [record for part in parts for record in inputs.read(part, job, rows)]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_shards_of_webdataset_and_img2dataset(contents, tmp_path, mode):
  files = []
  for i, content in enumerate(contents):
    beside = [("cls", str(i).encode())] if i % 2 else [("json", b"{}"), ("txt", b"a")]
    sample = [*beside, ("png", content)]
    files += [(f"dir.x/{i:05d}.{ending}", x) for ending, x in sample]
  files.insert(3, ("dir.x/99999.json", b"{}"))  # a download that failed
  write_tar(tmp_path / "0.tar", files, mode)
  found = read(f"tar:{tmp_path}/*.tar", tmp_path)
  assert [x.image for x in found] == contents
  assert [x.label for x in found] == [-1, 1, -1, 3, -1, 5]
  assert found[2].name == f"{tmp_path}/0.tar:dir.x/00002"
  again = read(f"tar:{tmp_path}/*.tar", tmp_path, rows=[1, 4])
  assert again == [found[1], found[4]]


def test_labels_of_text_are_counted_apart_from_missing_ones(contents, tmp_path):
  texts = {"0": b"cat", "1": b" 7 ", "2": b"-5"}
  files = [(f"{key}.cls", text) for key, text in texts.items()]
  files += [(f"{key}.png", contents[0]) for key in (*texts, "3")]
  write_tar(tmp_path / "0.tar", sorted(files))
  found = read(f"tar:{tmp_path}/0.tar", tmp_path)
  assert [x.label for x in found] == [class_labels.NOT_A_CLASS, 7, -1, -1]


@pytest.mark.parametrize("lost", [100, 1024 * 9 + 600, 1024 * 10])
def test_a_tar_file_that_breaks_off_reports_it_after_its_last_complete_image(
  contents, tmp_path, lost
):
  path = tmp_path / "0.tar"
  write_tar(path, [(f"{i}.png", content) for i, content in enumerate(contents)])
  data = path.read_bytes().rstrip(b"\0")
  path.write_bytes(data[: len(data) - lost])
  found = read(f"tar:{path}", tmp_path)
  whole = [x.image for x in found[:-1]]
  assert whole == contents[: len(whole)] and len(whole) < len(contents)
  assert found[-1].image is None and found[-1].name == str(path)
  assert found[-1].trouble


@pytest.mark.parametrize("damage", ["no end", "header"])
def test_damage_that_tarfile_takes_for_the_end_is_reported(contents, tmp_path, damage):
  path = tmp_path / "0.tar"
  write_tar(path, [(f"{i}.png", contents[0]) for i in range(3)])
  data = bytearray(path.read_bytes())
  block = 512 + -(-len(contents[0]) // 512) * 512  # of one file
  if damage == "no end":
    del data[3 * block :]
  else:
    data[2 * block : 2 * block + 100] = bytes(range(100))
  path.write_bytes(data)
  found = read(f"tar:{path}", tmp_path)
  assert [x.image for x in found] == [contents[0]] * (len(found) - 1) + [None]
  assert len(found) == (4 if damage == "no end" else 3)


def test_parquet_of_bytes_and_of_hugging_face(contents, tmp_path):
  labels = list(range(6))
  structs = [{"bytes": x, "path": None} for x in contents[:5]]
  structs.append({"bytes": None, "path": "elsewhere.png"})
  for name, column in (("plain", contents), ("hub", structs)):
    table = pyarrow.table({"image": column, "label": labels})
    parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=4)
  plain = read(f"parquet:{tmp_path}/plain.parquet", tmp_path)
  assert [(x.image, x.label) for x in plain] == list(zip(contents, labels, strict=True))
  assert plain[5].name == f"{tmp_path}/plain.parquet#1.1"
  hub = read(f"parquet:{tmp_path}/hub.parquet", tmp_path)
  assert [x.image for x in hub] == [*contents[:5], None]
  assert hub[5].trouble == "no bytes in this row"


def test_one_of_several_image_columns_has_to_be_named(contents, tmp_path):
  table = pyarrow.table({"a": contents, "b": contents})
  parquet.write_table(table, tmp_path / "0.parquet")
  spec = f"parquet:{tmp_path}/0.parquet"
  with pytest.raises(
    errors.UserError,
    match=r'\["a", "b"\]; call it `image`, or name it by --image_column',
  ):
    read(spec, tmp_path)
  assert [x.image for x in read(spec, tmp_path, image_column="b")] == contents


def test_folders_and_array_records_as_training_reads_them(contents, tmp_path):
  for i, content in enumerate(contents):
    path = tmp_path / "f" / ("cat" if i < 2 else "dog") / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  found = read(f"folder:{tmp_path}/f", tmp_path)
  assert [(x.image, x.label) for x in found] == list(
    zip(contents, [0, 0, 1, 1, 1, 1], strict=True)
  )
  writer = array_record_module.ArrayRecordWriter(
    str(tmp_path / "0.arrayrecord"), "group_size:1"
  )
  for content in contents:
    writer.write(content)
  writer.close()
  found = read(f"arrayrecord:{tmp_path}/*.arrayrecord", tmp_path)
  assert [x.image for x in found] == contents
  digits = read("embedded:digits:test", tmp_path)
  assert len(digits) == 450
  assert np.asarray(Image.open(io.BytesIO(digits[0].image))).shape == (8, 8, 3)


def test_files_of_a_folder_that_are_skipped_by_extension_are_counted(tmp_path):
  (tmp_path / "a").mkdir()
  for name in ("0.png", "1.GIF", "a/2.gif", "a/3.JPG", "a/README", ".hidden"):
    (tmp_path / name).touch()
  spec = f"folder:{tmp_path}"
  (line,) = inputs.skipped_files([spec, f"folder:{tmp_path}/none", "tar:x"])
  assert line.endswith("files skipped because of their extension: 2 .gif, 1 without")


@pytest.mark.parametrize(
  ("spec", "said"),
  [
    ("tar:/nowhere/*.tar", r'--images="tar:/nowhere/\*.tar" matches no file'),
    ("folder:/nowhere", "does not exist"),
    ("/data/photos", "must be one of folder:PATH, tar:GLOB"),
    ("parquet:{here}/x", "is no Parquet file"),
  ],
)
def test_inputs_that_do_not_exist_are_refused_at_once(tmp_path, spec, said):
  (tmp_path / "x").write_bytes(b"x")
  with pytest.raises(errors.UserError, match=said):
    read(spec.format(here=tmp_path), tmp_path)


def test_the_fingerprint_is_of_contents_and_not_of_sizes_and_times(contents, tmp_path):
  path, found = tmp_path / "0.tar", set()
  settings = ingest_jobs.make_settings()
  for content in contents[:2]:
    write_tar(path, [("0.png", content[:500])])
    os.utime(path, (0, 0))
    found.add(inputs.fingerprint(inputs.plan([f"tar:{path}"], [], settings)))
  assert len(found) == 2


def test_an_input_that_changed_or_went_away_ends_the_run(contents, tmp_path):
  path = tmp_path / "0.tar"
  write_tar(path, [("0.png", contents[0])])
  job = ingest_jobs.make_job(tmp_path)
  (part,) = inputs.plan([f"tar:{path}"], [], job.settings)
  write_tar(path, [("0.png", contents[0]), ("1.png", contents[1])])
  with pytest.raises(errors.UserError, match="has changed since this ingest") as raised:
    list(inputs.read(part, job))
  assert raised.value.status == 1
  path.unlink()
  with pytest.raises(errors.TemporaryError, match="cannot be read any more"):
    list(inputs.read(part, job))


def test_a_folder_that_went_away_is_worth_a_restart(contents, tmp_path):
  folder = tmp_path / "photos"
  folder.mkdir()
  (folder / "0.png").write_bytes(contents[0])
  job = ingest_jobs.make_job(tmp_path)
  (part,) = inputs.plan([f"folder:{folder}"], [], job.settings)
  folder.rename(tmp_path / "elsewhere")
  with pytest.raises(errors.TemporaryError, match='photos" is out of reach'):
    list(inputs.read(part, job))
  inputs._open.cache_clear()  # as in another process
  with pytest.raises(errors.TemporaryError, match=r"not exist; .* \(it was there when"):
    list(inputs.read(part, job))
