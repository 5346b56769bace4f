"""Two students from start to end; a kill between their saves."""

import json
import pathlib
import shutil

import main_test
import pytest
import tiny
import train_session

from dinojax import backbone, errors
from dinojax.weights import formats, model, runs
from experiments import quickstart

pytestmark = pytest.mark.process
# Students of one width are evaluated by one program; in distill_test.py they differ.
CONFIG = """
from experiments import quickstart


def get_config():
  config, teacher = quickstart.get_config(), quickstart.get_config()
  teacher.backbone.update(width=16, depth=1, heads=2)
  teacher.heads.dino.update(hidden=16, bottleneck=8, prototypes=32)
  with config.unlocked():
    config.distill.update(
      teacher={teacher!r},
      backbone=teacher.backbone,
      heads=teacher.heads,
      students=dict(more=dict(backbone=dict(registers=1)), other=dict()),
    )
  return config
"""
STEPS = (
  *("total_steps=6", "checkpoint.keep_last=3", "log_every=1"),
  *("dense_eval.every=6", "dense_eval.memory=5_000"),
  "dense_eval.train=embedded:digits:test",  # is the smaller part
)


@pytest.fixture(scope="module")
def train(folder):
  """Trains the students of the config in the folder, shrunk as in main_test.py."""
  session = train_session.Session()

  def train(workdir, *overrides, status=0):
    settings = f"workdir={workdir}", *main_test.SMALL, *STEPS, *overrides
    ended = session.train(*settings, config=folder / "students.py")
    assert ended.status == status, ended.output
    assert "Traceback" not in ended.output
    return ended.output

  yield train
  session.close()


def write_teacher(folder, seed):
  """Weights of the teacher's networks, as a converted run has them."""
  fields = {**quickstart.get_config().backbone} | dict(width=16, depth=1, heads=2)
  fields = {name: fields[name] for name in model.ARCHITECTURE}
  head = dict(hidden=16, bottleneck=8, prototypes=32)
  shapes = {
    "backbone": model.shapes(fields),
    "dino_head": model.head_shapes(width=16, **head),
  }
  weights = model.Weights(model.in_one_form(fields), tiny.noise(shapes, seed))
  formats.write(weights, str(folder), "dinojax")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with two teachers, and a config of two students of the first one."""
  folder = tmp_path_factory.mktemp("distilled")
  for seed in (0, 1):
    write_teacher(folder / f"teacher{seed}", seed)
  text = CONFIG.format(teacher=str(folder / "teacher0"))
  (folder / "students.py").write_text(text)
  return folder


@pytest.fixture(scope="module")
def whole(folder, train):
  """The workdir of a whole run."""
  output = train(folder / "whole")
  assert "targets are those of" in output and "more: backbone" in output
  assert output.count("the first step waits") == 1
  return folder / "whole"


def checksums(workdir, step):
  record = runs.read_record(pathlib.Path(workdir, "checkpoints", str(step)))
  return record["checksums"]


def test_each_student_leaves_what_any_run_leaves(whole):
  for name, registers in (("more", 1), ("other", 0)):
    workdir = whole / name
    loaded = backbone.load(str(workdir))
    assert loaded.module.registers == registers
    assert loaded.run == (str(workdir), 6)
    steps = main_test.logged(workdir)
    assert len(steps) == 7 and steps[-1]["knn_segmentation_miou"] > 0.05
    assert "complete, step 6 of 6" in (workdir / "report.html").read_text()
    config = json.loads((workdir / "config.json").read_text())
    assert config["backbone"]["registers"] == registers
    assert not config["distill"]["students"]
    # The teacher is no part of the checkpoint.
    assert len({name.split(".")[0] for name in checksums(workdir, 6)}) == 4


def test_the_folder_above_them_names_them(whole):
  with pytest.raises(errors.UserError, match=r"students more, other are in .*more$"):
    backbone.load(str(whole))


def test_a_kill_between_two_saves_loses_the_later_one_and_repeats_it_bit_by_bit(
  whole, train, tmp_path
):
  again = shutil.copytree(whole, tmp_path / "again")
  shutil.rmtree(again / "more" / "checkpoints" / "6")
  output = train(again, "dense_eval.every=0")  # is no part of what it repeats
  assert "checkpoint 6 is ahead of other students'" in output
  assert (again / "other" / "checkpoints" / "ahead-6-1").is_dir()
  for name in ("more", "other"):
    assert main_test.logged(again / name) == main_test.logged(whole / name)[:6]
    assert checksums(again / name, 6) == checksums(whole / name, 6)


def test_a_student_cannot_join_later_and_a_teacher_cannot_change(
  whole, folder, train, tmp_path
):
  late = shutil.copytree(whole, tmp_path / "late")
  shutil.rmtree(late / "more")
  assert "a student cannot join later" in train(late, status=1)
  output = train(whole, f"distill.teacher={folder / 'teacher1'}", status=1)
  assert "has other weights than at the checkpoint" in output.splitlines()[-1]
