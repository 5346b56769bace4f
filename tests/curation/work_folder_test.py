"""The work folder: the same ingest resumes in it, and no other uses or removes it."""

import os
import pathlib
import shutil

import ingest_jobs
import numpy as np
import pytest

from dinojax import durable, errors
from dinojax.curation import work_folder
from dinojax.runtime import ownership


def fail_after(job, given, *, scanned):
  """An attempt that ends by a mistake, before or after it has scanned a part."""
  mistake = pytest.raises(errors.UserError, match="a mistake")
  with mistake, work_folder.opened(job, given):
    if scanned:
      job.save(job.path("scan", 0), np.zeros(1))
    raise errors.UserError("a mistake")


def is_scanned(job, given):
  """Whether an ingest finds the part that `fail_after` has scanned."""
  with work_folder.opened(job, given):
    return job.path("scan", 0).exists()


def test_the_same_ingest_resumes(tmp_path):
  job = ingest_jobs.make_job(tmp_path)
  fail_after(job, {"min_side": 32}, scanned=True)
  assert is_scanned(job, {"min_side": 32})


def test_other_settings_are_refused_with_what_to_remove(tmp_path):
  job = ingest_jobs.make_job(tmp_path)
  fail_after(job, {"min_side": 32}, scanned=True)
  with pytest.raises(errors.UserError) as raised:
    is_scanned(job, {"min_side": 40})
  described = job.out.with_name(f"{job.out.name}.json")
  assert str(raised.value) == (
    f"--out={job.out} holds an unfinished ingest with other settings: min_side 32, now"
    f" 40. Choose another --out, or remove {described} and {job.work}"
  )


def test_a_finished_ingest_is_complete_for_the_same_settings_alone(tmp_path):
  job = ingest_jobs.make_job(tmp_path)
  assert not work_folder.is_complete(job, {"min_side": 32})
  with work_folder.opened(job, {"min_side": 32}):
    job.out.mkdir()
    assert not work_folder.is_complete(job, {"min_side": 32})
    durable.set_complete(job.out, complete=True)
    work_folder.remove(job)
  assert work_folder.is_complete(job, {"min_side": 32})
  with pytest.raises(errors.UserError, match="holds a finished ingest with other"):
    work_folder.is_complete(job, {"min_side": 40})


def test_differences_are_named_once_and_in_words():
  there = {
    **{"images": ["folder:a"], "exclude": [], "parts": 3, "source": "1f", "quality": 9},
    **{"weights": "", "network": None, "dinojax": "1", "complete": False},
  }

  def differ(**now):
    return work_folder.differences(there, there | now)

  assert differ(complete=True) == []
  assert differ(images=["folder:b", "tar:c"], parts=1, source="2e", quality=8) == [
    "images folder:a, now folder:b, tar:c",
    "quality 9, now 8",
  ]
  assert differ(exclude=["folder:x"]) == ["exclude none, now folder:x"]
  (line,) = differ(source="2e")
  assert "files of --images or --exclude were added, removed or changed" in line
  (line,) = differ(weights="ab")
  assert line == "--checkpoint has other weights now"
  there["network"] = {"checkpoint": "a.pth", "crop": 224}
  assert differ(network={"checkpoint": "a.pth", "crop": 98}) == ["crop 224, now 98"]


def test_without_its_settings_an_earlier_scan_counts_for_nothing(tmp_path):
  job = ingest_jobs.make_job(tmp_path)
  fail_after(job, {"min_side": 32}, scanned=True)
  job.out.with_name(f"{job.out.name}.json").unlink()
  assert not is_scanned(job, {"min_side": 40})


@pytest.mark.parametrize("content", ["", "[" * 100_000])
def test_damaged_settings_of_a_work_folder_are_those_of_no_ingest(tmp_path, content):
  job = ingest_jobs.make_job(tmp_path)
  fail_after(job, {"min_side": 32}, scanned=True)
  (job.work / work_folder.SETTINGS_FILE).write_text(content)
  assert not is_scanned(job, {"min_side": 32})


def test_an_attempt_that_scanned_nothing_leaves_nothing(tmp_path):
  job = ingest_jobs.make_job(tmp_path)
  fail_after(job, {"min_side": 32}, scanned=False)
  assert not list(tmp_path.rglob("*"))
  assert not is_scanned(job, {"min_side": 40})


def test_a_work_folder_that_was_removed_meanwhile_is_one_line(tmp_path):
  job = ingest_jobs.make_job(tmp_path)
  with (
    pytest.raises(errors.UserError, match=r"out\.work was removed while this ingest"),
    work_folder.opened(job, {"images": "a"}),
  ):
    shutil.rmtree(job.work)
    job.save(job.path("scan", 1), np.zeros(1))  # as another task does
    job.rows(0)
  with work_folder.opened(job, {"images": "a"}):  # it can be restarted
    pass


def test_a_folder_of_another_kind_is_not_removed(tmp_path):
  job = ingest_jobs.make_job(tmp_path)
  job.work.mkdir(parents=True)
  (job.work / "thesis.txt").write_text("my only copy")
  with pytest.raises(errors.UserError, match=r"is no ingest.s: it has no settings"):
    is_scanned(job, {"min_side": 32})
  assert [x for x in tmp_path.rglob("*.*") if x != job.work] == [
    job.work / "thesis.txt"
  ]


def test_two_ingests_into_one_output_at_a_time_are_refused(tmp_path):
  job = ingest_jobs.make_job(tmp_path)
  with work_folder.opened(job, {"min_side": 32}):
    for given in ({"min_side": 32}, {"min_side": 40}):
      with pytest.raises(ownership.TakenError, match=f"by process {os.getpid()} on "):
        is_scanned(job, given)
    assert job.work.exists()
  assert not is_scanned(job, {"min_side": 32})


def test_another_version_of_a_data_set_is_another_output(tmp_path):
  first, second = (ingest_jobs.make_job(tmp_path / name) for name in ("1.0.0", "2.0.0"))
  with work_folder.opened(first, {}), work_folder.opened(second, {}):
    assert pathlib.Path(first.work).exists() and second.work.exists()
