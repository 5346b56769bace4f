"""Checks of an accelerator: which devices they run on, and what they are given.

  pytest tests/gpu --platform=gpu --cifar10=data/cifar10

They are skipped without --platform, since all other tests run on virtual CPU devices.
With --platform=cpu the same code runs there.
"""

import jax
import pytest


@pytest.fixture(scope="session")
def platform(request):
  """The kind of the devices under test: "gpu" or "cpu"."""
  name = request.config.option.platform
  if name is None:
    pytest.skip("give --platform=gpu, or --platform=cpu to try these tests themselves")
  return name


@pytest.fixture(scope="session")
def device(platform):
  """The device under test."""
  return jax.devices(platform)[0]


@pytest.fixture(scope="session")
def cpu():
  """The device to compare with."""
  return jax.devices("cpu")[0]
