"""What a sweep is made of, from what a person types."""

import pytest

from dinojax import errors
from launch import sweeps


def overrides(*texts):
  return [run.overrides for run in sweeps.runs(texts)]


def test_without_a_sweep_there_is_one_run_in_the_workdir_itself():
  [run] = sweeps.runs([])
  assert run.overrides == {}
  assert run.folder == ""


def test_several_sweeps_make_every_combination_the_last_fastest():
  assert overrides("config.seed=0,1", "config.mesh.fsdp=2,4") == [
    {"seed": "0", "mesh.fsdp": "2"},
    {"seed": "0", "mesh.fsdp": "4"},
    {"seed": "1", "mesh.fsdp": "2"},
    {"seed": "1", "mesh.fsdp": "4"},
  ]


@pytest.mark.parametrize(
  ("text", "values"),
  [
    ("(0.1,0.4), (0.2, 0.5)", ["(0.1,0.4)", "(0.2, 0.5)"]),
    ("('a,b','c'),('d',)", ["('a,b','c')", "('d',)"]),
    ("'x,(y',z", ["'x,(y'", "z"]),
    ("1e-3", ["1e-3"]),
  ],
)
def test_commas_in_brackets_and_quotes_divide_nothing(text, values):
  assert [run["f"] for run in overrides(f"config.f={text}")] == values


def test_folders_tell_the_values_and_differ_where_they_do():
  texts = ["config.seed=0,1", "config.data.sources=folder:/a,folder:_a"]
  folders = [run.folder for run in sweeps.runs(texts)]
  assert len(set(folders)) == 4
  assert all(folder.startswith("seed=") for folder in folders)
  assert not any(char in folder for folder in folders for char in "/: ,'")
  assert sweeps.runs(["config.seed=-1"])[0].folder == "seed=-1"


@pytest.mark.parametrize(
  ("texts", "said"),
  [
    (["seed=0,1"], "--sweep=seed=0,1 must be config.FIELD=VALUE,VALUE,..."),
    (["config.seed="], "must be config.FIELD="),
    (["config.seed=0,,1"], "has an empty value"),
    (["config.seed=0,0"], "has a value twice"),
    (["config.seed=0", "config.seed=1"], "--sweep=config.seed is given twice"),
    (["config.workdir=a,b"], "each run has its own already"),
  ],
)
def test_what_makes_no_sweep_is_refused(texts, said):
  with pytest.raises(errors.UserError) as caught:
    sweeps.runs(texts)
  assert said in str(caught.value)
