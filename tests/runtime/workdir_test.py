"""A workdir is made, tried and kept from other runs, or refused in one line."""

import json
import os
import shutil

import pytest

from dinojax import config_fields, errors
from dinojax.runtime import workdir
from experiments import vitg14


def check(saved, config, data_fingerprint, free):
  workdir.check_same_run(
    saved, config=config, data_fingerprint=data_fingerprint, free=free
  )


def test_a_workdir_is_made_and_left_empty(tmp_path):
  folder = tmp_path / "a" / "b"
  workdir.probe(str(folder))
  assert list(folder.iterdir()) == []


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
  path = tmp_path / "file"
  path.touch()
  with pytest.raises(errors.UserError) as caught:
    workdir.probe(str(path))
  assert str(caught.value) == (
    f"config.workdir={str(path)!r} is not writable (File exists); choose a folder with"
    " space and permission: --config.workdir=FOLDER"
  )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workdir_without_permission_is_refused(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(errors.UserError, match=r"not writable \(Permission denied\)"):
    workdir.probe(str(tmp_path / "runs"))


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="needs Linux")
def test_a_workdir_in_an_impossible_place_is_refused():
  with pytest.raises(errors.UserError, match=r"config.workdir='/proc/runs' is not"):
    workdir.probe("/proc/runs")


def test_a_name_that_orbax_cannot_write_is_refused_at_the_start(tmp_path):
  with pytest.raises(errors.UserError, match="is not UTF-8, which Orbax needs"):
    workdir.probe(f"{tmp_path}/caf\udce9")
  assert not list(tmp_path.iterdir())


def test_data_that_changed_are_named_and_can_be_accepted():
  config = vitg14.get_config().to_dict()
  config["data"].update(sources=("folder:/a", "folder:/b"), weights=(1.0, 1.0))
  record = {"config": config, "data_fingerprint": ["1", "2"]}
  free = ("data.sources", "data.accept_changed")
  check(record, config, ["1", "2"], free)
  with pytest.raises(errors.UserError) as caught:
    check(record, config, ["1", "3"], free)
  assert str(caught.value).startswith("config.data.sources[1]='folder:/b' holds other")
  accepting = {**config, "data": {**config["data"], "accept_changed": True}}
  check(record, accepting, ["1", "3"], free)


@pytest.mark.parametrize(
  ("before", "now", "said"),
  [
    ("files=2 names=a contents=b", "files=2 names=a contents=b", ""),
    ("files=9 names=a contents=b times=c", "files=9 names=a contents=b times=d", ""),
    (
      "files=1347 names=a contents=b",
      "files=1350 names=c contents=d",
      "1,347 files then",
    ),
    (
      "files=2 names=a contents=b",
      "files=2 names=c contents=d",
      "other names of files",
    ),
    ("files=2 names=a contents=b", "files=2 names=a contents=d", "other contents"),
    ("0123456789abcdef", "files=2 names=a contents=b", "do not compare"),
    ("0123456789abcdef", "0123456789abcdee", "other contents"),
  ],
)
def test_what_differs_in_the_data_is_said_and_copies_are_the_same(before, now, said):
  assert said in workdir.data_difference(before, now)
  assert bool(said) == bool(workdir.data_difference(before, now))


def test_a_run_of_another_length_is_refused_with_the_way_to_extend_it(tmp_path):
  config = vitg14.get_config()
  record = {"step": 9, "config": config.to_dict(), "data_fingerprint": ["f"]}
  with config.unlocked():
    config.workdir = str(tmp_path)
    config.total_steps *= 2
    config.schedules.learning_rate.warmup_steps = 10
  with pytest.raises(errors.UserError, match=r"longer, add --config\.extend=True"):
    workdir.Workdir(config, ["f"]).check(record)
  config.extend = True
  workdir.Workdir(config, ["f"]).check(record)
  with config.unlocked():
    config.backbone.depth = 41
  with pytest.raises(errors.UserError, match=r"config\.backbone\.depth: 40 in the"):
    workdir.Workdir(config, ["f"]).check(record)


def test_a_gram_stage_begins_by_extending_a_run_and_keeps_its_teacher(tmp_path):
  config = vitg14.get_config()
  record = {"step": 9, "config": config.to_dict(), "data_fingerprint": ["f"]}
  with config.unlocked():
    config.workdir = str(tmp_path)
    config.gram.update(teacher="runs/a@5", refresh_steps=(20,))
  with pytest.raises(errors.UserError, match=r"longer, add --config\.extend=True"):
    workdir.Workdir(config, ["f"]).check(record)
  config.extend = True
  workdir.Workdir(config, ["f"]).check(record)
  begun = {**record, "config": config.to_dict()}
  config.gram.refresh_steps = (20, 30)
  workdir.Workdir(config, ["f"]).check(begun)
  config.gram.teacher = "runs/b@5"
  with pytest.raises(errors.UserError, match=r"gram\.teacher: runs/a@5 in the workdir"):
    workdir.Workdir(config, ["f"]).check(begun)


def test_a_run_of_an_earlier_version_is_the_same_run_with_todays_fields(tmp_path):
  config = vitg14.get_config()
  config.workdir = str(tmp_path)
  older = config.to_dict()
  for path in config_fields.ADDED:
    *groups, name = path.split(".")[1:]
    group = older
    for part in groups:
      group = group[part]
    del group[name]
  assert "gram" not in older and "positions" not in older["backbone"]
  record = {"step": 9, "config": older, "data_fingerprint": ["f"]}
  workdir.Workdir(config, ["f"]).check(record)


def test_a_run_is_not_extended_to_fewer_steps_than_it_has(tmp_path):
  config = vitg14.get_config()
  record = {"step": 30, "config": config.to_dict(), "data_fingerprint": ["f"]}
  with config.unlocked():
    config.update(workdir=str(tmp_path), total_steps=20, extend=True)
  with pytest.raises(errors.UserError, match=r"total_steps=20 is below step 30"):
    workdir.Workdir(config, ["f"]).check(record)


def test_a_second_run_in_the_folder_is_refused_while_the_first_is_there(tmp_path):
  config = vitg14.get_config()
  config.workdir = str(tmp_path)
  first, second = (workdir.Workdir(config, ["f"]) for _ in range(2))
  with first.owned():
    with pytest.raises(errors.UserError, match=rf"in use by process {os.getpid()} on"):
      second.owned().__enter__()
    first.check_owned()
  with second.owned():
    pass
  assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_removed_meanwhile_is_an_error(tmp_path):
  config = vitg14.get_config()
  config.workdir = str(tmp_path / "run")
  run = workdir.Workdir(config, ["f"])
  with run.owned():
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(errors.UserError, match="was removed"):
      run.check_owned()


SAVED = {"workdir": "runs/a", "seed": 0, "backbone": {"depth": 12, "sizes": (1, 2)}}


def test_check_same_run_names_every_difference_and_forgives_the_free_fields():
  data = {"data": {"sources": ("a",), "accept_changed": False}}
  config = {**SAVED, **data}
  record = {"step": 10, "data_fingerprint": ["f"], "config": config}
  record = json.loads(json.dumps(record))
  check(record, config, ["f"], ())
  moved = {**config, "workdir": "runs/b"}
  check(record, moved, ["f"], {"workdir"})
  changed = {"workdir": "w", "backbone": {"depth": 24, "sizes": (1, 3)}, "new": True}
  with pytest.raises(errors.UserError) as caught:
    check(record, {**changed, **data}, ["f"], {"workdir"})
  message = str(caught.value)
  for part in (
    "config.workdir=w holds another run",
    "config.seed: 0 in the workdir, None now",
    "config.backbone.depth: 12 in the workdir, 24 now",
    "config.backbone.sizes: [1, 2] in the workdir, [1, 3] now",
    "config.new: None in the workdir, True now",
  ):
    assert part in message
  assert "\n" not in message


def test_a_run_resumes_whose_config_had_no_fields_of_loggers_and_pictures():
  config = vitg14.get_config().to_dict()
  before = {k: v for k, v in config.items() if k not in ("loggers", "pictures")}
  record = {"step": 10, "data_fingerprint": ["f"], "config": before}
  check(json.loads(json.dumps(record)), config, ["f"], workdir.FREE_FIELDS)
