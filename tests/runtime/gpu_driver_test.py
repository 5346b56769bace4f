"""Words for a machine whose GPU is not used, by what its driver states."""

import jax
import pytest

from dinojax.runtime import gpu_driver

CLOSED = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}.104.05  Sat Aug 19 2023
GCC version:  gcc version 11.3.0 (Ubuntu 11.3.0-1ubuntu1~22.04)
"""
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}.90.07  Release\n"


@pytest.fixture
def unused(tmp_path, monkeypatch):
  """A function from a driver's version and JAX's plugins to the words."""
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  before = jax.config.jax_platforms
  jax.config.update("jax_platforms", None)

  def words(driver, installed, form=CLOSED):
    (tmp_path / "version").write_text(form.format(driver))
    return gpu_driver.doubts(tmp_path / "version", installed=installed)

  yield words
  jax.config.update("jax_platforms", before)


@pytest.mark.parametrize("form", [CLOSED, OPEN])
@pytest.mark.parametrize(
  "driver, installed, said",
  [
    (580, [], "JAX is installed for CPUs alone: pip install -e '.[cuda13]'"),
    (550, [], "JAX is installed for CPUs alone: pip install -e '.[cuda12]'"),
    (470, [], "its driver 470 is too old for CUDA 12: install driver 525 or newer"),
    (470, [12], "its driver 470 is too old for CUDA 12: install driver 525 or newer"),
    (
      *(550, [13]),
      "CUDA 13 needs driver 580 and this is 550: pip uninstall jax-cuda13-plugin;"
      " pip install -e '.[cuda12]'",
    ),
    (580, [12], "JAX cannot start it; JAX's own warnings above say why"),
  ],
)
def test_the_reason_and_the_way_out_follow_from_driver_and_plugins(
  driver, installed, said, form, unused
):
  (found,) = unused(driver, installed, form)
  assert found.startswith(f"the NVIDIA GPU of this machine is not used, since {said}")
  assert "\n" not in found


def test_nothing_is_said_where_the_cpu_is_meant(unused, monkeypatch):
  assert unused(580, [])
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
  assert unused(580, []) == []
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
  jax.config.update("jax_platforms", "cpu")
  assert unused(580, []) == []


def test_nothing_is_said_without_a_driver(unused, tmp_path):
  assert gpu_driver.doubts(tmp_path / "none", installed=[]) == []
