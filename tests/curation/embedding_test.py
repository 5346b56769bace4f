"""Embeddings of an ingest are directions, whatever their length."""

import types
import warnings

import ingest_jobs
import numpy as np
import pytest
from PIL import Image

from dinojax import errors
from dinojax.curation import embedding, examine, inputs
from dinojax.data import layouts


def compute(tmp_path, monkeypatch, feature):
  """What is kept of images that all have this feature."""
  for i in range(2):
    Image.new("RGB", (8, 8), (90 * i, 0, 0)).save(tmp_path / f"{i}.png")
  job = ingest_jobs.make_job(tmp_path)
  (part,) = inputs.plan([f"folder:{tmp_path}"], [], job.settings)
  examine.scan(part, job=job)
  loaded = lambda x: np.tile(feature, (len(x), 1)), layouts.RGB
  monkeypatch.setattr(embedding, "_load_backbone", lambda _: loaded)
  network = types.SimpleNamespace(batch_size=2, resize=8, crop=8, checkpoint="w.pth")
  with warnings.catch_warnings(action="error"):
    embedding.compute_features(part, job=job, network=network)
  return np.load(job.path("features", part.number))


def test_a_long_feature_is_a_direction(tmp_path, monkeypatch):
  found = compute(tmp_path, monkeypatch, np.full(4, 1e30, np.float32))
  np.testing.assert_array_equal(found, np.full((2, 4), 0.5))


@pytest.mark.parametrize("value", [0, np.inf, np.nan])
def test_what_is_no_direction_is_an_error(value, tmp_path, monkeypatch):
  with pytest.raises(errors.UserError, match=r"0\.png that are zero or not finite"):
    compute(tmp_path, monkeypatch, np.full(4, value, np.float32))
