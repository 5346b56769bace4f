"""What a host needs is the plan's step divided by hosts, times what an image takes."""

import logging

import pytest
from PIL import Image

from dinojax import errors
from dinojax.planning import input_plan
from experiments import quickstart, vitg14


def test_needs_of_a_host_of_the_reference_run():
  config = vitg14.get_config()
  measured = {"seconds_per_image": 0.005, "bytes_per_image": 8_500.0}
  needs = input_plan.needs(config, {"seconds": 0.8}, hosts=32, measured=measured)
  assert needs["images_per_step"] == 64
  assert needs["images_per_second"] == pytest.approx(80)
  assert needs["cores"] == pytest.approx(0.4)
  assert needs["read_bytes_per_second"] == pytest.approx(680_000)
  crops = 64 * (2 * 224**2 * 3 + 8 * 98**2 * 3 + 2 * 16**2)
  # Indices and weights of masked patches come on top: a few bytes each.
  assert crops < needs["crops_bytes_per_second"] * 0.8 < 1.01 * crops
  assert needs["batches_bytes"] == pytest.approx(
    33 * needs["crops_bytes_per_second"] * 0.8
  )
  lines = dict(input_plan.rows(needs))
  assert lines["  cores needed, like those here"] == "0.4 of 16 workers"
  needs["cores"] = 20
  lines = dict(input_plan.rows(needs))
  assert lines["  cores needed, like those here"] == "20.0; raise config.workers=16"


def test_without_a_steps_time_only_what_is_known_is_said():
  needs = input_plan.needs(quickstart.get_config(), {}, hosts=1, measured=None)
  assert needs.keys() == {"hosts", "workers", "images_per_step", "batches_bytes"}


def test_an_image_is_timed_through_the_whole_input(monkeypatch):
  monkeypatch.setattr(input_plan, "SECONDS", 0)
  config = quickstart.get_config()
  measured = input_plan.measure(config, "embedded:digits:train")
  assert measured["bytes_per_image"] == 8 * 8 * 3
  assert 1e-5 < measured["seconds_per_image"] < 1


def test_corrupt_images_of_a_sample_are_skipped(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(input_plan, "SECONDS", 0)
  monkeypatch.setattr(input_plan, "SAMPLES", 10)
  for i in range(40):  # more than are tried in the place of one
    (tmp_path / f"{i:02}.png").write_bytes(b"no image")
  config = quickstart.get_config()
  with pytest.raises(
    errors.UserError, match="none of its 40 images can be read"
  ) as one:
    input_plan.measure(config, f"folder:{tmp_path}")
  assert "\n" not in str(one.value) and ".png: cannot identify" in str(one.value)
  Image.new("RGB", (20, 20), "red").save(tmp_path / "40.png")
  with caplog.at_level(logging.WARNING):
    measured = input_plan.measure(config, f"folder:{tmp_path}")
  assert measured["bytes_per_image"] == (tmp_path / "40.png").stat().st_size
  assert "sampled images are corrupt and not measured, such as" in caplog.text
