"""What all tests share: eight virtual CPU devices, a cache of programs, the marks."""

import collections
import gc
import os
import pathlib
import re
import shutil
import sys

import pytest

# Machine code that is not optimised compiles in half the time, and most tests compile.
# XLA's older emitters (xla_cpu_use_fusion_emitters=false) would take a third of that,
# but make a gradient of accumulate_test.py 2,000 times too long (jaxlib 0.10.2).
os.environ["XLA_FLAGS"] = (
  "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  " --xla_llvm_disable_expensive_passes=true"
)
os.environ["JAX_PLATFORMS"] = "cpu"
gc.set_threshold(100_000, 50, 100)  # tracing makes many objects and little garbage
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

# Of programs that `_keep_programs` keeps. Processes that tests start inherit it.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
MAX_PROGRAMS = 2**30  # bytes; beyond, all are compiled again


LEFT_OUT = pytest.StashKey[int]()  # tests of the mark `long`, for the summary


def pytest_addoption(parser):
  """Adds --long, and what tests/gpu is given."""
  parser.addoption(
    "--long",
    action="store_true",
    help="runs the tests of the mark `long`, too: each takes many seconds, and a"
    " cheaper test holds the same at a smaller scale (alone: -m long, or a node id)",
  )
  parser.addoption("--platform", choices=("cpu", "gpu"), help="runs tests/gpu there")
  parser.addoption("--cifar10", metavar="FOLDER", help="of JPEG: train and test")
  parser.addoption("--minutes", type=float, default=5, help="of training on --cifar10")


def pytest_configure(config):
  """Declares the marks that select tests, and chooses the platform."""
  if config.option.platform == "gpu":
    os.environ["JAX_PLATFORMS"] = "cuda,cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
  config.addinivalue_line(
    "markers", "process: starts processes that import jax, which takes seconds each"
  )
  config.addinivalue_line(
    "markers", "browser: opens a page in Chromium, where it is installed"
  )
  config.addinivalue_line(
    "markers", "gpu_compile: compiles for NVIDIA GPUs, with packages of [plan-gpu]"
  )
  config.addinivalue_line(
    "markers", "long: dear, and held at a smaller scale by another test; see --long"
  )
  config.stash[LEFT_OUT] = 0
  own = "JAX_COMPILATION_CACHE_DIR" in os.environ  # a worker has the session's
  if not own and config.pluginmanager.has_plugin("cacheprovider"):
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_keep_programs(config))
    if "jax" in sys.modules:  # imported by the conftest.py of a folder that is named
      sys.modules["jax"].config.update("jax_compilation_cache_dir", folder)
  config.option.loadscopereorder = False  # of xdist, which sorts by number of tests


def _keep_programs(config) -> pathlib.Path:
  """Returns the folder of compiled programs: of this session and of later ones.

  It lies in .pytest_cache, which `pytest --cache-clear` empties. A program that a
  killed process wrote in part is named by a warning, and is compiled each time.
  """
  folder = config.cache.mkdir("programs")
  if sum(file.stat().st_size for file in folder.iterdir()) > MAX_PROGRAMS:
    shutil.rmtree(folder)
  return folder


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
  """As many workers as cores, and one more where tests wait for processes."""
  waiting = "not process" not in config.option.markexpr
  return len(os.sched_getaffinity(0)) + waiting


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config, items):
  """Leaves out long tests, and puts the files that start most processes first."""
  if not (config.option.long or re.search(r"\blong\b", config.option.markexpr)):
    named = {arg.split("::", 1)[1] for arg in config.args if "::" in arg}
    left_out = [
      item
      for item in items
      if item.get_closest_marker("long")
      and not {item.name, item.name.split("[")[0]} & named
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    config.stash[LEFT_OUT] = len(left_out)
  processes = collections.Counter(
    item.path for item in items if item.get_closest_marker("process")
  )
  items.sort(key=lambda item: -processes[item.path])  # they take longest


def pytest_sessionfinish(session):
  """A worker of xdist reports how many tests it left out."""
  if hasattr(session.config, "workeroutput"):
    session.config.workeroutput["left_out"] = session.config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  """All workers of xdist collect the same tests."""
  left_out = getattr(node, "workeroutput", {}).get("left_out", 0)
  node.config.stash[LEFT_OUT] = left_out


def pytest_terminal_summary(terminalreporter, config):
  """Prints how many long tests were left out."""
  if count := config.stash[LEFT_OUT]:
    terminalreporter.write_line(f"long tests left out, which --long runs, too: {count}")
