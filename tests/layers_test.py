"""Who may import whom, how long files may grow, and that importing does nothing."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = {
  ".".join(path.relative_to(ROOT / "dinojax").with_suffix("").parts): path
  for path in sorted((ROOT / "dinojax").rglob("*.py"))
}
MODULES = [name for name in FILES if not name.endswith("__init__")]
LAUNCHERS = sorted((ROOT / "launch").glob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))

VERBS = {
  *("main", "evaluate", "embed", "convert", "plan", "ingest", "preview", "report"),
  *("finetune", "measure"),
}
MAY_LAUNCH = {
  *("errors", "preflight", "runtime.rendezvous", "runtime.signals"),
  *("commands.mistakes", "commands.parsing"),
}
# Rooms from the ground up: folders, and the files that stand in the open. A file
# imports from lower floors, and from its own room. All verbs are on the top floor.
FLOORS = (
  "errors",
  "config_fields durable",
  "resolutions students channels",
  "preflight",
  "reporting",
  "pages runtime sharding",
  "checksums data networks losses schedules",
  "accumulate evals checkpoint gram",
  "dino optimizer weights",
  "distill start",
  "assembly introduction",
  "planning backbone feature_files",
  "export curation pictures finetuning",
  "trainee classifier",
  "commands",
  "evaluation",
)
# Imported where they are used: tensorboardX imports PyTorch, the others are extras.
ALONE = {f"reporting.{name}" for name in ("tensorboard", "wandb_run", "mlflow_run")}
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms.split()}


def room(name):
  """The folder of a module, or itself where it stands in the open."""
  return name.split(".")[0]


def imported(path):
  """Modules that a file imports anywhere in it, by their full names."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path.name}: relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def own_imports(path):
  """The same, of dinojax alone, without its name in front; itself it has a version."""
  names = {name for name in imported(path) if name.startswith("dinojax.")}
  return {name.removeprefix("dinojax.") for name in names}


def test_every_file_has_its_room():
  assert {room(name) for name in MODULES} == VERBS | set(FLOOR)


@pytest.mark.parametrize("name", MODULES)
def test_files_import_from_lower_floors_and_their_own_room(name):
  found = own_imports(FILES[name])
  assert found <= set(MODULES), "import modules, not names"
  for other in found - {name}:
    assert room(other) not in VERBS, f"{other} is a command"
    below = FLOOR[room(other)] < FLOOR.get(room(name), len(FLOORS))
    assert below or room(other) == room(name), other


def test_no_circle_of_imports():
  graphlib.TopologicalSorter(
    {name: own_imports(FILES[name]) for name in MODULES}
  ).prepare()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_import_ml_collections_and_each_other_alone(path):
  for name in imported(path):
    assert name.split(".")[0] in ("ml_collections", "experiments"), name


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_launchers_import_nothing_of_jax_or_the_model_and_are_short(path):
  for name in imported(path):
    top, _, module = name.partition(".")
    assert top not in ("jax", "flax", "orbax", "tests"), name
    assert top != "dinojax" or module in MAY_LAUNCH, name
  text = path.read_text()
  assert len(text.splitlines()) <= 300
  assert ast.get_docstring(ast.parse(text))


def run(program):
  """What a Python program prints, in a process of its own."""
  result = subprocess.run(
    [sys.executable, "-c", program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout


def test_commands_answer_help_and_wrong_flags_without_loading_jax():
  run(
    "import sys; from dinojax.commands import cli, mistakes, parsing\n"
    "assert not {'jax', 'numpy'} & set(sys.modules)"
  )


def test_a_job_is_submitted_without_loading_jax():
  program = (
    "import sys; from launch import cluster, gke\n"
    "assert not {'jax', 'tensorflow', 'torch'} & set(sys.modules)"
  )
  run(program)


@pytest.mark.parametrize("name", FILES)
def test_files_are_at_most_300_lines_and_say_what_they_are_for(name):
  text = FILES[name].read_text()
  assert len(text.splitlines()) <= 300
  assert ast.get_docstring(ast.parse(text))


def test_the_method_fits_on_200_lines():
  assert len(FILES["dino"].read_text().splitlines()) <= 200
  assert len(FILES["main"].read_text().splitlines()) <= 200


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_say_what_they_are_for(path):
  assert ast.get_docstring(ast.parse(path.read_text()))


def test_importing_everything_starts_no_backend_loads_no_torch_and_prints_nothing():
  program = "\n".join(
    [
      "import sys",
      "from absl import flags",
      "from dinojax.commands import backbone_flags, cli",
      "shared = set(flags.FLAGS)",
      *(
        # Commands may have flags of one name: no process has two of them.
        f"import dinojax.{name}\n"
        "for own in set(flags.FLAGS) - shared: delattr(flags.FLAGS, own)"
        for name in MODULES
        if name not in ALONE
      ),
      "import dinojax.reporting.tensorboard",
      "assert 'torch' not in sys.modules",  # more than all else that a start takes
      "from jax._src import xla_bridge",
      "assert not xla_bridge.backends_are_initialized()",
    ]
  )
  assert run(program) == ""
