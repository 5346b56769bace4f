"""Who may import whom, how long files may grow, and that importing does nothing."""

import ast
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

# What each file may import of dinojax, from the bottom up. "data." stands for all
# files of that folder. Those not named are entry points, which nobody may import.
DATA = {"errors", "data."}
METHOD = {
  "losses",
  "blocks",
  "vit",
  "heads",
  "dino",
  "optimizer",
  "schedules",
  "sharding",
}
MAY_IMPORT = {
  "errors": set(),
  "sharding": {"preflight"},
  "accumulate": {"sharding"},
  "losses": set(),
  "positions": set(),
  "schedules": set(),
  "attention_tpu": {"sharding"},
  "attention_cpu": {"sharding"},
  "attention": {"attention_cpu", "attention_tpu", "sharding"},
  "blocks": {"attention", "sharding"},
  "vit": {"blocks", "positions", "sharding"},
  "heads": {"blocks", "vit", "sharding"},
  "checkpoint": {"errors"},
  "events": set(),
  "metrics": {"errors", "events", "throughput"},
  "throughput": set(),
  "data.arrayrecord": set(),
  "data.index": {"errors", "data.arrayrecord"},
  "data.shards": {"errors", "data.arrayrecord", "data.index"},
  "data.mixture": {"errors", "data.sources"},
  "data.images": {"errors"},
  "data.geometry": set(),
  "data.resample": {"data.geometry"},
  "data.photometric": set(),
  # Its command line calls what draws its crops.
  "data.augment": {"errors", "data.", "contact_sheet"},
  "data.masking": {"errors"},
  "data.classes": {"errors", "data.sources"},
  "data.prefetch": {"allocator", "errors"},
  "data.sources": {"errors", "data.images", "data.shards"},
  "data.pipeline": DATA,
  "dino": {"accumulate", "losses", "vit", "heads"},
  "optimizer": {"schedules"},
  "evals.features": {"errors", "vit", "sharding", "data."},
  "evals.cache": {"errors", "metrics", "sharding", "evals.features"},
  "evals.few_shot": {"errors", "sharding", "evals.features", "evals.knn"},
  "evals.retrieval": {
    *("errors", "sharding"),
    *("evals.features", "evals.search", "evals.select"),
  },
  "evals.select": set(),
  "evals.search": {"sharding", "evals.features", "evals.select"},
  "preflight": {"errors"},
  "durable": {"errors"},
  "feature_files": {"durable", "errors"},
  "allocator": set(),
  "mistakes": {"errors"},
  "peers": {"errors"},
  "processes": {"allocator", "errors", "peers"},
  "cli": {"errors", "mistakes", "processes"},
  "watchdog": {"errors", "processes"},
  "hlo_ops": set(),
  "hlo": {"hlo_ops"},
  "costs": {"hlo", "data."},
  "input_plan": {"data."},
  "topology": {"errors"},
  "interrupts": {"metrics"},
  "assembly": {*METHOD, "errors", "weights.", "data."},
  "weights.model": {"errors", "heads", "positions", "vit"},
  "weights.names": set(),
  "weights.state_dicts": {"errors", "weights.model", "weights.names"},
  "weights.preprocessor": {"errors", "vit"},
  "weights.files": {"errors", "weights.preprocessor"},
  "weights.runs": {"checkpoint", "errors", "sharding", "weights.model"},
  "weights.formats": {"errors", "sharding", "weights."},
  "backbone": {"checkpoint", "errors", "sharding", "vit", "weights."},
  "backbone_flags": {"backbone", "errors", "weights."},
  "export": {"backbone", "errors"},
  "curation.jobs": {"durable"},
  "curation.claims": {"durable", "errors", "curation.jobs"},
  "curation.tar_shards": set(),
  "curation.parquet": {"errors"},
  "curation.fingerprints": set(),
  "curation.inputs": {
    *("errors", "data."),
    *("curation.jobs", "curation.parquet", "curation.tar_shards"),
  },
  "curation.examine": {
    *("data.", "curation.fingerprints", "curation.inputs", "curation.jobs"),
  },
  "curation.worker": set(),
  "curation.watch": {"errors"},
  "curation.engine": {"errors", "curation.watch", "curation.worker"},
  "curation.collisions": {
    *("curation.engine", "curation.fingerprints", "curation.jobs"),
  },
  "curation.components": {
    *("curation.collisions", "curation.engine", "curation.fingerprints"),
    "curation.jobs",
  },
  "curation.embedding": {
    *("backbone", "errors", "data."),
    *("curation.collisions", "curation.engine", "curation.inputs", "curation.jobs"),
  },
  "curation.output": {
    *("durable", "errors"),
    *("curation.examine", "curation.inputs", "curation.jobs"),
  },
  "curation.manifest": {"curation.jobs", "curation.tar_shards"},
  "curation.report": {"durable", "data.", "curation.inputs", "curation.jobs"},
}
EVALS = {"errors", "vit", "sharding", "data.", "evals.features", "evals.search"}


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


@pytest.mark.parametrize("name", MODULES)
def test_files_import_only_from_the_layers_below_them(name):
  found = own_imports(FILES[name])
  assert found <= set(MODULES), "import modules, not names"
  every_layer = {*MAY_IMPORT, "data.", "evals.", "curation."}
  allowed = MAY_IMPORT.get(name, EVALS if name.startswith("evals.") else every_layer)
  for other in found:
    assert other in allowed or f"{other.split('.')[0]}." in allowed, other


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_import_ml_collections_and_each_other_alone(path):
  for name in imported(path):
    assert name.split(".")[0] in ("ml_collections", "experiments"), name


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_launchers_import_nothing_of_jax_or_the_model_and_are_short(path):
  for name in imported(path):
    top, _, module = name.partition(".")
    assert top not in ("jax", "flax", "orbax", "tests"), name
    assert top != "dinojax" or module in ("errors", "mistakes", "preflight"), name
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
  assert len(FILES["dino"].read_text().splitlines()) < 200
  assert len(FILES["main"].read_text().splitlines()) <= 200


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_say_what_they_are_for(path):
  assert ast.get_docstring(ast.parse(path.read_text()))


def test_importing_everything_starts_no_backend_loads_no_torch_and_prints_nothing():
  program = "\n".join(
    [
      "import sys",
      "from absl import flags",
      "from dinojax import backbone_flags, cli",
      "shared = set(flags.FLAGS)",
      *(
        # Commands may have flags of one name: no process has two of them.
        f"import dinojax.{name}\n"
        "for own in set(flags.FLAGS) - shared: delattr(flags.FLAGS, own)"
        for name in MODULES
        if name != "events"
      ),
      "assert 'torch' not in sys.modules",  # more than all else that a start takes
      "import dinojax.events",
      "from jax._src import xla_bridge",
      "assert not xla_bridge.backends_are_initialized()",
    ]
  )
  assert run(program) == ""
