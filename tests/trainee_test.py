"""Two students from start to end, as a user runs them; a kill between their saves."""

import json
import pathlib
import shutil

import main_test
import pytest
import tiny

from dinojax import backbone, errors
from dinojax.weights import formats, model, runs
from experiments import quickstart

pytestmark = pytest.mark.process
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
      students=dict(narrow=dict(backbone=dict(width=8)), other=dict()),
    )
  return config
"""
STEPS = (
  *("total_steps=6", "checkpoint.keep_last=3", "log_every=1"),
  *("dense_eval.every=6", "dense_eval.memory=5_000"),
)


def start(folder, workdir, *overrides, **options):
  """Starts a distillation, shrunk as in main_test.py, by the config in a folder."""
  config = folder / "students.py"
  return main_test.start(workdir, *STEPS, *overrides, config=config, **options)


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
  """A folder with two teachers, and a whole run of two students of the first one."""
  folder = tmp_path_factory.mktemp("distilled")
  for seed in (0, 1):
    write_teacher(folder / f"teacher{seed}", seed)
  text = CONFIG.format(teacher=str(folder / "teacher0"))
  (folder / "students.py").write_text(text)
  output = main_test.finish(start(folder, folder / "whole"))
  assert "targets are those of" in output and "narrow: backbone" in output
  assert output.count("the first step waits") == 1
  return folder


def checksums(workdir, step):
  record = runs.read_record(pathlib.Path(workdir, "checkpoints", str(step)))
  return record["checksums"]


def test_each_student_leaves_what_any_run_leaves(folder):
  for name, width in (("narrow", 8), ("other", 16)):
    workdir = folder / "whole" / name
    loaded = backbone.load(str(workdir))
    assert loaded.module.width == width
    assert loaded.run == (str(workdir), 6)
    steps = main_test.logged(workdir)
    assert len(steps) == 7 and steps[-1]["knn_segmentation_miou"] > 0.05
    assert "complete, step 6 of 6" in (workdir / "report.html").read_text()
    config = json.loads((workdir / "config.json").read_text())
    assert config["backbone"]["width"] == width and not config["distill"]["students"]
    # The teacher is no part of the checkpoint.
    assert len({name.split(".")[0] for name in checksums(workdir, 6)}) == 4


def test_the_folder_above_them_names_them(folder):
  with pytest.raises(
    errors.UserError, match=r"students narrow, other are in .*narrow$"
  ):
    backbone.load(str(folder / "whole"))


def test_a_kill_between_two_saves_loses_the_later_one_and_repeats_it_bit_by_bit(folder):
  again = shutil.copytree(folder / "whole", folder / "again")
  shutil.rmtree(again / "narrow" / "checkpoints" / "6")
  output = main_test.finish(start(folder, again))
  assert "checkpoint 6 is ahead of other students'" in output
  assert (again / "other" / "checkpoints" / "ahead-6-1").is_dir()
  for name in ("narrow", "other"):
    whole = folder / "whole" / name
    assert main_test.logged(again / name) == main_test.logged(whole)
    assert checksums(again / name, 6) == checksums(whole, 6)


def test_a_student_cannot_join_later_and_a_teacher_cannot_change(folder):
  late = shutil.copytree(folder / "whole", folder / "late")
  shutil.rmtree(late / "narrow")
  output = main_test.finish(start(folder, late), code=1)
  assert "a student cannot join later" in output
  teacher = f"distill.teacher={folder / 'teacher1'}"
  output = main_test.finish(start(folder, folder / "whole", teacher), code=1)
  assert "has other weights than at the checkpoint" in output.splitlines()[-1]
