"""One string names a source, and a user's mistake becomes one line."""

import numpy as np
import pytest

from dinojax import errors
from dinojax.data import sources


@pytest.mark.parametrize(
  "spec", ["", "folder:", "/data/images", "tfds:mnist", "embedded:digits", "s3:bucket"]
)
def test_an_unknown_source_is_told_what_there_is(spec):
  with pytest.raises(errors.UserError, match=r"config.knn.train=.* must be "):
    sources.open_source(spec, field="config.knn.train")


@pytest.mark.parametrize(
  ("spec", "meant"),
  [
    ("photos", "folder:"),
    ("a.array_record-00000-of-00001", "arrayrecord:"),
    ("*.array_record*", "arrayrecord:"),
    ("*.tar", "tar:"),
    ("*.parquet", "parquet:"),
  ],
)
def test_a_path_without_its_kind_is_told_the_kind(tmp_path, monkeypatch, spec, meant):
  (tmp_path / "photos").mkdir()
  (tmp_path / "a.array_record-00000-of-00001").touch()
  for name in ("0.tar", "0.parquet", "notes.txt"):
    (tmp_path / name).touch()
  monkeypatch.setenv("HOME", str(tmp_path))
  for path in (f"{tmp_path}/{spec}", f"~/{spec}"):
    with pytest.raises(errors.UserError) as raised:
      sources.open_source(path, field="--images")
    assert str(raised.value).endswith(f"; did you mean {meant}{path}?")
  for path in (f"{tmp_path}/none/{spec}", f"{tmp_path}/notes.txt"):
    with pytest.raises(errors.UserError, match=r"embedded:digits:SPLIT$"):
      sources.open_source(path, field="--images")


def test_digits_split_into_1347_and_450_scaled_to_a_byte():
  train = sources.open_source("embedded:digits:train", field="f")
  test = sources.open_source("embedded:digits:test", field="f")
  assert (len(train), len(test), len(train.class_names)) == (1347, 450, 10)
  pixels = np.stack([train[i]["image"] for i in range(len(train))])
  assert pixels.shape == (1347, 8, 8, 3)
  assert pixels.dtype == np.uint8
  assert (pixels.min(), pixels.max()) == (0, 255)
  assert len(np.unique(pixels)) == 17
  assert {test[i]["label"] for i in range(450)} == set(range(10))
  assert train.fingerprint != test.fingerprint
  assert train.name(3) == "digits:train#3"
