"""On CPU, what a step frees stays with the process for the next one."""

import subprocess
import sys

import pytest

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
