"""Scenes of digits: deterministic, and their label maps say whose ink a pixel is."""

import numpy as np
import pytest

from dinojax.data import digits, label_maps, sources


@pytest.fixture(scope="module")
def scenes():
  return sources.open_source("embedded:scenes:test", field="f")


def test_scenes_have_label_maps_of_eleven_classes_and_no_label(scenes):
  assert isinstance(scenes, sources.DenseSource)
  assert scenes.map_classes == ("background", *"0123456789")
  assert (len(scenes), scenes.class_names) == (128, ())
  for record in scenes:
    assert record["image"].shape == (48, 48, 3) and record["image"].dtype == np.uint8
    assert record["label_map"].shape == (48, 48) and record["label"] == -1
  found = np.unique([record["label_map"] for record in scenes])
  assert found.tolist() == [*range(11), label_maps.IGNORE]


def test_strokes_are_classes_paper_is_background_and_what_is_between_is_ignored(
  scenes,
):
  for record in scenes:
    grey, classes = record["image"][..., 0], record["label_map"]
    assert np.array_equal(classes == 0, grey < digits.PAPER)
    is_digit = (classes > 0) & (classes != label_maps.IGNORE)
    assert np.array_equal(is_digit, grey >= digits.INK)


def test_a_digit_has_a_label_map_of_its_strokes():
  source = sources.open_source("embedded:digits:test", field="f")
  assert isinstance(source, sources.DenseSource)
  for record in source:
    grey, classes = record["image"][..., 0], record["label_map"]
    assert np.array_equal(classes == 0, grey < digits.PAPER)
    assert np.array_equal(classes == 1 + record["label"], grey >= digits.INK)


def test_scenes_are_the_same_each_time_and_on_any_machine():
  train = sources.open_source("embedded:scenes:train", field="f")
  again = sources.open_source("embedded:scenes:train", field="f")
  assert train.fingerprint == again.fingerprint == "37c5797793146415"
  assert len(train) == 1024 and train.name(3) == "scenes:train#3"
  assert (
    train.fingerprint
    != sources.open_source("embedded:scenes:test", field="f").fingerprint
  )
