"""Datasets of tfds with label or depth maps are read without TensorFlow."""

import io
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dinojax.data import sources


def png(values):
  file = io.BytesIO()
  Image.fromarray(values).save(file, "PNG")
  return io.BytesIO(file.getvalue())


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Two examples with a map; `kept` names and types it."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {"image": tfds.features.Image(shape=(None, None, 3)), **self.maps}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, _):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(2):
      image = png(np.full((4, 6, 3), 9, np.uint8))
      yield i, {"image": image, next(iter(self.maps)): self.values(i)}


class Pets(Tiny, skip_registration=True):
  name = "oxford_iiit_pet"
  maps = {"segmentation_mask": tfds.features.Image(shape=(None, None, 1))}  # noqa: RUF012

  def values(self, i):
    return png(np.full((4, 6), 1 + i, np.uint8) + np.eye(4, 6, dtype=np.uint8))


class Depths(Tiny, skip_registration=True):
  name = "nyu_depth_v2"
  maps = {"depth": tfds.features.Tensor(shape=(4, 6), dtype=np.float16)}  # noqa: RUF012

  def values(self, i):
    return np.full((4, 6), 1.5 + i, np.float16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("tfds")
  for builder in (Pets, Depths):
    builder(data_dir=str(path), file_format="array_record").download_and_prepare()
  return path


@pytest.fixture
def opened(folder, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
  return lambda name: sources.open_source(f"tfds:{name}:train", field="f")


def test_pets_have_label_maps_of_three_classes(opened):
  source = opened("oxford_iiit_pet")
  assert isinstance(source, sources.DenseSource)
  assert not isinstance(source, sources.DepthSource)
  assert source.map_classes == ("pet", "background", "border")
  found = {tuple(np.unique(source[i]["label_map"]).tolist()) for i in range(2)}
  assert found == {(0, 1), (1, 2)} and source[0]["label_map"].shape == (4, 6)


def test_nyu_has_depth_maps_in_metres(opened):
  source = opened("nyu_depth_v2")
  assert isinstance(source, sources.DepthSource)
  assert not isinstance(source, sources.DenseSource)
  found = [source[i]["depth_map"] for i in range(2)]
  assert {float(x[0, 0]) for x in found} == {1.5, 2.5}
  assert found[0].dtype == np.float32
  assert "tensorflow" not in sys.modules
