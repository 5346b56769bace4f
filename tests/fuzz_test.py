"""Damaged files of every format that is read end in our own errors; sixty cases."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "bench"))

import fuzz


@pytest.mark.process
def test_damaged_files_end_in_our_own_errors_and_cost_no_sound_image():
  counts, failures = fuzz.run(cases=range(60), seed=0, seconds=60, gigabytes=3)
  assert not failures
  assert counts["read"] > 12 and counts["refused"] > 12
