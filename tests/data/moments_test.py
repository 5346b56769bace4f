"""Measured channels: means and deviations of all pixels, and the fields for them."""

import json
import subprocess
import sys

import children
import numpy as np
import pytest

from dinojax import errors
from dinojax.data import layouts, moments, sources


@pytest.fixture
def arrays(tmp_path):
  """Five arrays of four channels in the folder, beside a damaged one."""
  rng = np.random.default_rng(0)
  made = [rng.integers(0, 9_000, (6 + i, 9, 4)).astype(np.uint16) for i in range(5)]
  for i, array in enumerate(made):
    np.save(tmp_path / f"{i}.npy", array)
  (tmp_path / "5.npy").write_bytes(b"no array")
  return np.concatenate([x.reshape(-1, 4) for x in made]).astype(np.float64)


def opened(folder):
  return sources.open_source(f"folder:{folder}", field="--images")


def test_means_and_deviations_are_those_of_all_pixels(tmp_path, arrays):
  layout, found, readable = moments.measure(opened(tmp_path), count=100)
  assert (layout, readable) == (layouts.Layout(4, "uint16"), 5)
  assert found.count == len(arrays)
  np.testing.assert_allclose(found.mean, arrays.mean(0), rtol=1e-12)
  np.testing.assert_allclose(found.variance, arrays.var(0), rtol=1e-12)
  np.testing.assert_array_equal(found.least, arrays.min(0))
  np.testing.assert_array_equal(found.most, arrays.max(0))


@pytest.mark.process
def test_the_command_prints_fields_that_a_run_takes(tmp_path, arrays):
  result = subprocess.run(
    [
      *(sys.executable, "-m", "dinojax.measure"),
      *(f"--images=folder:{tmp_path}", "--max_value=10000"),
    ],
    env=children.environment(1),
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  assert "5.npy: cannot identify" in result.stderr
  first, *_, channels, dtype, most, mean, std = result.stdout.splitlines()
  assert first.startswith("5 of 6 images of folder:")
  assert channels == "--config.data.channels=4"
  assert dtype == "--config.backbone.image_dtype=uint16"
  assert most == "--config.backbone.max_value=10000"
  for line, name, wanted in (
    (mean, "mean", arrays.mean(0)),
    (std, "std", arrays.std(0)),
  ):
    field, _, values = line.partition("=")
    assert field == f"--config.backbone.{name}" and values[:2] == "'("
    np.testing.assert_allclose(
      json.loads(values.strip("'()").join("[]")), wanted / 10_000, rtol=1e-5
    )


def test_sources_that_no_run_can_take_are_one_line(tmp_path):
  np.save(tmp_path / "a.npy", np.zeros((18, 18, 17), np.uint8))
  message = r"a.npy has 17 channels; a run takes at most 16$"
  with pytest.raises(errors.UserError, match=message):
    moments.measure(opened(tmp_path), count=1)
  (tmp_path / "a.npy").write_bytes(b"")
  message = "none of 1 images can be read, such as .*a.npy: zero bytes$"
  with pytest.raises(errors.UserError, match=message):
    moments.measure(opened(tmp_path), count=1)
