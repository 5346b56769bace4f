"""What the command lines share, in processes without JAX: help, experiments, errors."""

import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process
ROOT = pathlib.Path(__file__).parents[2]
# dinojax can be imported and its project is not on Python's path, as when installed.
COMMAND = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from dinojax.commands import cli
sys.path.remove({str(ROOT)!r})

def main(_):
  print(cli.CONFIG.value.workdir)
  assert "jax" not in sys.modules

cli.run(main, on_interrupt="ended")
"""


def run(*arguments, cwd=ROOT, code=0):
  """Standard output and error of the command."""
  done = subprocess.run(
    [sys.executable, "-c", COMMAND, *arguments],
    cwd=cwd,
    env={name: x for name, x in os.environ.items() if name != "PYTHONPATH"},
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert done.returncode == code, done.stdout + done.stderr
  return done.stdout, done.stderr


@pytest.mark.parametrize("flag", ["--help", "-help", "--helpshort", "--helpfull", "-?"])
def test_help_is_a_result_and_ends_with_0(flag):
  output, said = run(flag)
  assert said == ""
  assert "--config: Experiment file to run." in output or flag != "--helpfull"


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ([], "--config=FILE is missing; try experiments/quickstart.py"),
    (["--confog=x"], "Unknown command line flag 'confog'. Did you mean: config ?"),
    (
      ["--confg.seed=3"],
      "--confg.seed is no option; did you mean --config.seed?",
    ),
    (["--x=3"], "Unknown command line flag 'x'; --help lists the options"),
    (["--config=no.py"], "--config=no.py: there is no such file"),
    (["--config", "no.py:9"], "--config=no.py:9: there is no such file"),
    (
      ["--config=experiments/vitg14.py", "--config.backbone.dept=3"],
      "--config has no such field: dept; did you mean depth?",
    ),
    (
      ["--config=experiments/vitg14.py", "--config.nonsense.dept=3"],
      "--config has no such field: nonsense",
    ),
    (
      ["--config=experiments/vitg14.py", "more"],
      "'more' is no option; options start with --",
    ),
  ],
)
def test_a_mistake_is_one_line_and_status_1(arguments, said):
  output, line = run(*arguments, code=1)
  assert (output, line) == ("", f"dinojax: {said}\n")


def test_an_experiment_is_found_from_any_folder(tmp_path):
  path = ROOT / "experiments" / "quickstart.py"
  assert run(f"--config={path}", cwd=tmp_path) == ("runs/quickstart\n", "")


@pytest.mark.parametrize("folder", ["photos", "experiments"])
def test_an_experiment_of_ones_own_imports_those_of_the_project(tmp_path, folder):
  mine = tmp_path / folder / "mine.py"
  mine.parent.mkdir()
  mine.write_text(
    "from experiments import vitg14\n"
    "def get_config(name):\n"
    "  config = vitg14.get_config()\n"
    "  config.workdir = f'runs/{name}'\n"
    "  return config\n"
  )
  # With an argument, as two words, from elsewhere and from its own folder.
  assert run("--config", f"{mine}:a", cwd="/")[0] == "runs/a\n"
  assert run("--config=mine.py:b", cwd=mine.parent)[0] == "runs/b\n"


def test_experiments_beside_the_one_that_is_named_come_first(tmp_path):
  folder = tmp_path / "experiments"
  folder.mkdir()
  (folder / "vitl14.py").write_text(
    "from experiments import vitg14\nget_config = vitg14.get_config\n"
  )
  (folder / "mine.py").write_text(
    "from experiments import vitl14\nget_config = vitl14.get_config\n"
  )
  output = run(f"--config={folder / 'mine.py'}", cwd=ROOT)[0]
  assert output == "runs/vitg14\n"  # of its own vitl14.py, not of this project's


def test_a_module_that_an_experiment_misses_is_named(tmp_path):
  mine = tmp_path / "mine.py"
  mine.write_text("import nowhere_to_be_found\n")
  assert run(f"--config={mine}", code=1)[1] == (
    "dinojax: --config: No module named 'nowhere_to_be_found'; install it, or add its"
    " folder to PYTHONPATH\n"
  )


SAVING = f"""
import signal, sys
sys.path.insert(0, {str(ROOT)!r})
from dinojax.commands import cli
from dinojax.runtime import exits, signals

def main(_):
  try:
    signals.interrupt(signal.SIGTERM)
  except signals.Interrupted:
    if "saved" in sys.argv:
      exits.exit(143)
    raise

cli.run(main, on_interrupt="all is lost", config=False, arguments="what")
"""


@pytest.mark.parametrize("end, lost", [("saved", False), ("unsaved", True)])
def test_a_command_that_saves_at_a_signal_does_not_say_that_all_is_lost(end, lost):
  command = [sys.executable, "-c", SAVING, end]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 143
  assert ("all is lost" in done.stderr) == lost, done.stderr
