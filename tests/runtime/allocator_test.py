"""On CPU, what a step frees stays with the process; of a GPU, JAX takes most."""

import os
import subprocess
import sys

import pytest

from dinojax.runtime import allocator

SCRIPT = """
import ctypes, glob, resource, sys
from dinojax.runtime import allocator
if sys.argv[1] == "kept":
  allocator.ACCELERATORS = ()  # also where this machine has one
  allocator.keep_pages()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = 2**26
faults = []
for _ in range(2):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
  ctypes.memset(block, 1, size)
  faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
  libc.free(block)
print(faults[1])
"""


def faults_of_the_second_use(how):
  command = [sys.executable, "-c", SCRIPT, how]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has mallopt")
def test_freed_pages_are_kept_for_the_next_step():
  # 64 MiB are 16,384 pages, or 32 huge ones.
  assert faults_of_the_second_use("kept") < 10
  assert faults_of_the_second_use("as it is") > 30


@pytest.mark.parametrize("name", allocator.GPU_VARIABLES)
def test_jax_takes_most_of_a_gpu_unless_the_environment_says_how_much(
  name, monkeypatch
):
  for variable in allocator.GPU_VARIABLES:
    monkeypatch.delenv(variable, raising=False)
  monkeypatch.setenv(name, ".5")
  allocator.take_gpu_memory()
  assert [os.environ.get(x) for x in allocator.GPU_VARIABLES if x != name] == [None]
  monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "")  # so that it is restored
  monkeypatch.delenv(name)
  monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
  allocator.take_gpu_memory()
  assert float(os.environ["XLA_CLIENT_MEM_FRACTION"]) == allocator.GPU_SHARE
