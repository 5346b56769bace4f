"""What was seen for one ingest is never taken for another's, nor left in its way."""

import numpy as np
import pytest
from duplicates_test import make_job

from dinojax import errors
from dinojax.curation import claims


def fail_after(job, given, *, scanned):
  """An attempt that ends by a mistake, after it has looked at a part or before."""
  with pytest.raises(errors.UserError, match="a mistake"), claims.begun(job, given):
    if scanned:
      job.save(job.path("scan", 0), np.zeros(1))
    raise errors.UserError("a mistake")


def seen(job, given):
  """Whether an ingest finds the part that `fail_after` looked at."""
  with claims.begun(job, given):
    return job.path("scan", 0).exists()


def test_the_same_ingest_goes_on_with_what_was_seen(tmp_path):
  job = make_job(tmp_path)
  fail_after(job, {"min_side": 32}, scanned=True)
  assert seen(job, {"min_side": 32})


def test_another_one_is_refused_and_told_what_is_there_to_remove(tmp_path):
  job = make_job(tmp_path)
  fail_after(job, {"min_side": 32}, scanned=True)
  with pytest.raises(errors.UserError) as raised:
    seen(job, {"min_side": 40})
  described = job.out.with_name(f"{job.out.name}.json")
  assert str(raised.value) == (
    f"--out={job.out} was begun otherwise (min_side: 32 there, 40 now); choose another"
    f" --out, or remove {described} and {job.work}"
  )


def test_without_its_description_what_was_seen_counts_for_nothing(tmp_path):
  job = make_job(tmp_path)
  fail_after(job, {"min_side": 32}, scanned=True)
  job.out.with_name(f"{job.out.name}.json").unlink()
  assert not seen(job, {"min_side": 40})


def test_an_attempt_that_looked_at_nothing_leaves_nothing(tmp_path):
  job = make_job(tmp_path)
  fail_after(job, {"min_side": 32}, scanned=False)
  assert not list(tmp_path.rglob("*"))
  assert not seen(job, {"min_side": 40})


def test_a_folder_of_another_kind_is_not_removed(tmp_path):
  job = make_job(tmp_path)
  job.work.mkdir(parents=True)
  (job.work / "thesis.txt").write_text("my only copy")
  with pytest.raises(errors.UserError, match="does not say what ingest it is of"):
    seen(job, {"min_side": 32})
  assert [x for x in tmp_path.rglob("*.*") if x != job.work] == [
    job.work / "thesis.txt"
  ]
