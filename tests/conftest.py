"""What all tests share: eight virtual CPU devices, and a cache of compiled programs."""

import atexit
import collections
import gc
import os
import pathlib
import shutil
import sys
import tempfile

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

# One cache of compiled programs for all processes of a session. Those that it starts
# inherit the variables, so the first process to set them owns the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  cache = tempfile.mkdtemp(prefix="dinojax-tests-")
  atexit.register(shutil.rmtree, cache, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


def pytest_addoption(parser):
  """Adds what tests/gpu is given."""
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
  config.option.loadscopereorder = False  # of xdist, which sorts by number of tests


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
  """One worker more than cores: some tests wait for the processes that they start."""
  return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items):
  """Puts the files that start most processes first: they take longest."""
  processes = collections.Counter(
    item.path for item in items if item.get_closest_marker("process")
  )
  items.sort(key=lambda item: -processes[item.path])
