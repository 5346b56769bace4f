"""What the tests of this folder look at."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import pictures as made


@pytest.fixture(scope="session")
def pictures():
  return made.make(24)
