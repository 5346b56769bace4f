"""Flags of a frozen backbone."""

import subprocess
import sys

import pytest


@pytest.mark.process
def test_importing_the_flags_loads_no_jax():
  program = (
    "import sys; from dinojax.commands import backbone_flags\n"
    "assert not {'jax', 'numpy', 'torch'} & set(sys.modules), sorted(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", program], check=True)
