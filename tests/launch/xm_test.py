"""XManager's own command with our launch script: work units here and on a cluster."""

import os
import pathlib
import re
import sqlite3
import subprocess
import sys

import fake_cluster
import pytest

pytestmark = pytest.mark.process
ROOT = pathlib.Path(__file__).parent.parent.parent
QUICKSTART = "--config=experiments/quickstart.py"
GKE = (
  *("--config=experiments/vitg14.py", "--platform=gke", "--accelerator=v5p-128"),
  *("--image=i:1", "--workdir=gs://runs/vitg14"),
)


@pytest.fixture
def launch(tmp_path):
  """Runs the command with a home of its own, where XManager keeps its notes."""

  def run(*flags, **environment):
    return subprocess.run(
      [
        pathlib.Path(sys.executable).parent / "xmanager",
        *("launch", "launch/xm.py", "--", *flags),
      ],
      cwd=ROOT,
      env={**os.environ, "HOME": str(tmp_path), **environment},
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )

  return run


def work_units(home):
  """How many XManager knows of."""
  [database] = (home / ".xmanager").rglob("*.sqlite3")
  with sqlite3.connect(database) as connection:
    return connection.execute("select count(*) from work_unit").fetchone()[0]


def test_work_units_run_here_one_after_the_other_and_those_that_fail_are_named(
  launch, tmp_path
):
  # Runs that end before the compiler starts: what a whole one takes, CI has not.
  result = launch(
    *(QUICKSTART, "--sweep=config.data.batch_size=15,13"),
    f"--config.workdir={tmp_path}/runs",
    XLA_FLAGS="",  # one device
  )
  assert result.returncode == 1
  assert result.stdout.count("work unit ") == work_units(tmp_path) == 2
  said = [line for line in result.stderr.splitlines() if "must be a multiple" in line]
  assert [re.search(r"batch_size=(\d+)", line)[1] for line in said] == ["15", "13"]
  last = result.stderr.splitlines()[-1]
  assert last.startswith("dinojax: failed: work unit 1 data.batch_size=15 (")
  assert "work unit 2 data.batch_size=13 (" in last


def test_each_run_has_its_values_and_a_folder_of_its_own(launch):
  result = launch(
    *(QUICKSTART, "--dry_run", "--config.workdir=/w", "--config.log_every=5"),
    "--sweep=config.seed=3,4",
  )
  assert result.returncode == 0, result.stderr
  assert result.stderr.startswith("next: xmanager launch launch/xm.py -- ")
  assert "--dry_run" not in result.stderr
  for seed, line in zip((3, 4), result.stdout.splitlines(), strict=True):
    _, *arguments = line.split()
    assert arguments[:3] == ["-m", "dinojax.main", QUICKSTART]
    assert set(arguments[3:]) == {
      *(f"--config.seed={seed}", "--config.log_every=5"),
      f"--config.workdir=/w/seed={seed}",
    }


def test_on_a_cluster_each_work_unit_is_a_jobset(launch, tmp_path):
  with fake_cluster.FakeCluster() as cluster:
    result = launch(
      *GKE,
      "--sweep=config.seed=0,-1",
      "--config.log_every=10",
      KUBECONFIG=cluster.kubeconfig(tmp_path),
    )
  assert result.returncode == 0, result.stderr
  assert work_units(tmp_path) == 2
  for number, seed in ((1, "0"), (2, "-1")):
    manifest = cluster.jobsets["default", f"vitg14-v5p-128-{number}"]
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    assert f"--config.seed={seed}" in container["command"]
    assert "--config.log_every=10" in container["command"]
    workdir = f"--config.workdir=/gcs/workdir/runs/vitg14/seed={seed}"
    assert workdir in container["command"]


def test_one_run_on_a_cluster_is_as_gke_py_would_submit_it(launch):
  mine = launch(*GKE, "--dry_run", "--spot")
  theirs = subprocess.run(
    [sys.executable, "launch/gke.py", *GKE[:1], *GKE[2:], "--dry_run", "--spot"],
    cwd=ROOT,
    capture_output=True,
    check=True,
    text=True,
  )
  assert mine.returncode == 0, mine.stderr
  assert mine.stdout == theirs.stdout


def test_help_is_a_result_and_ends_with_0(launch):
  result = launch("--helpshort")
  assert (result.returncode, result.stderr) == (0, "")
  assert "--sweep" in result.stdout and "--accelerator" in result.stdout


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    ((), "--config=FILE is missing; try experiments/quickstart.py"),
    ((QUICKSTART, "--config.nope=1"), "--config has no such field: nope"),
    ((QUICKSTART, "--sweep=config.nope=1,2"), "--config has no such field: nope"),
    ((QUICKSTART, "--sweep=config.seed=1,x"), "flag --config.seed=x: invalid literal"),
    ((QUICKSTART, "--spot"), "--spot is for --platform=gke"),
    ((QUICKSTART, "--platform=gke"), "--accelerator=NAME is missing"),
  ],
)
def test_a_mistake_is_told_in_one_line(launch, flags, said):
  result = launch(*flags)
  assert result.returncode == 1
  [line] = result.stderr.splitlines()
  assert line.startswith(f"dinojax: {said}")
