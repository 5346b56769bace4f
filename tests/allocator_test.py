"""Steps on CPU find their memory where the last one left it."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from dinojax import allocator
if sys.argv[1] == "kept":
  allocator.keep_pages()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.sort(x @ x) @ x)  # temporaries of 16 MiB each
x = jax.block_until_ready(step(jnp.ones((2048, 2048))))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
  x = jax.block_until_ready(step(x))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
  command = [sys.executable, "-c", SCRIPT, how]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has mallopt")
def test_pages_are_kept_from_step_to_step():
  assert faults("kept") < faults("as it is") / 4
