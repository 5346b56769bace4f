"""Shards: their layout, their names, and what a writer's failure means."""

import errno
import pathlib

import ingest_jobs
import pytest

from dinojax.curation import output


@pytest.mark.parametrize(
  ("text", "number"),
  [
    ("write() failed: No space left on device; writing /a; at byte 9", errno.ENOSPC),
    ("write() failed: Disk quota exceeded; writing /a", errno.EDQUOT),
    ("open() failed: No such file or directory; opening /a", errno.ENOENT),
    ("Failed to close chunk_writer", None),
    ("a record of No space left on device", None),
  ],
)
def test_a_full_disk_is_one_only_where_the_system_has_reported_it(text, number):
  assert output.os_error(RuntimeError(text)).errno == number


def test_shards_are_filled_in_order_across_parts(tmp_path):
  job = ingest_jobs.make_job(tmp_path, records_per_shard=4)
  assert output.layout(job, {0: 3, 2: 0, 3: 6}) == [
    [(0, 0, 3), (3, 0, 1)],
    [(3, 1, 5)],
    [(3, 5, 6)],
  ]
  assert output.layout(job, {0: 0}) == []


@pytest.mark.parametrize(
  ("out", "name"),
  [
    ("/data/web/1.0.0", "web"),
    ("/data/my photos!", "my_photos_"),
    ("/data/2024/1.2.3", "images_2024"),
  ],
)
def test_a_data_set_is_named_after_its_folder(out, name):
  assert output.dataset_name(pathlib.Path(out)) == name
