"""A backbone keeps how its images are resized, cropped and normalised."""

import dataclasses
import re

import pytest
import transformers

from dinojax import backbone, errors
from dinojax.networks import vit
from dinojax.weights import formats, json_objects
from tests.weights import samples

SIZES = {"resize": 9, "crop": 4}


@pytest.mark.parametrize(
  "names",
  [
    ("folder", "model.safetensors", "hf"),
    ("model.safetensors", "hf", "folder"),
    ("hf", "folder", "model.safetensors"),
  ],
)
def test_resize_and_crop_of_a_run_travel_with_its_weights(tmp_path, names):
  weights = samples.random_weights(samples.PLAIN | dict(pool="gap"))
  wanted = found = dataclasses.replace(weights, sizes=SIZES)
  for name in names:
    path = str(tmp_path / name)
    kind = "dinojax" if name == "folder" else "huggingface"
    assert formats.write(found, path, kind) == []
    found = formats.read(path)
    assert found.sizes == backbone.load(path).sizes == SIZES
  samples.assert_same(found, wanted)


def test_a_pth_tells_sizes_that_are_not_the_usual_ones(tmp_path):
  weights = samples.random_weights(samples.PLAIN | dict(pool="cls"))
  lost = [
    formats.write(dataclasses.replace(weights, sizes=sizes), path, "released")
    for sizes, path in (
      (SIZES, str(tmp_path / "a.pth")),
      ({"resize": 7, "crop": 6}, str(tmp_path / "b.pth")),
    )
  ]
  assert lost == [
    ["the sizes at which images are evaluated: give --resize=9 --crop=4"],
    [],
  ]


def test_transformers_sees_images_at_the_sizes_of_the_run(tmp_path):
  weights = samples.random_weights(samples.PLAIN | dict(pool="cls"))
  for name, sizes, wanted in (("run", SIZES, (9, 4)), ("file", {}, (7, 6))):
    folder = tmp_path / name
    formats.write(dataclasses.replace(weights, sizes=sizes), str(folder), "huggingface")
    processor = transformers.BitImageProcessor.from_pretrained(folder)
    assert processor.size["shortest_edge"] == wanted[0]
    assert processor.crop_size == {"height": wanted[1], "width": wanted[1]}


@pytest.fixture
def reference_folder(tmp_path):
  """A model's folder as transformers saves it, with the images of released models."""
  samples.make_reference().save_pretrained(tmp_path / "reference")
  transformers.BitImageProcessor(
    size={"shortest_edge": 256},
    crop_size={"height": 224, "width": 224},
    image_mean=list(vit.IMAGENET_MEAN),
    image_std=list(vit.IMAGENET_STD),
  ).save_pretrained(tmp_path / "reference")
  return tmp_path / "reference"


def test_what_transformers_says_of_images_is_followed(reference_folder):
  assert formats.read(str(reference_folder)).sizes == {"resize": 256, "crop": 224}
  path = reference_folder / "preprocessor_config.json"
  samples.change_json(path, size=64, crop_size=32)  # as older ones are
  assert formats.read(str(reference_folder)).sizes == {"resize": 64, "crop": 32}
  path.unlink()
  assert formats.read(str(reference_folder)).sizes == {}


@pytest.mark.parametrize(
  "changes",
  [
    dict(do_center_crop=False),
    dict(do_resize=False),
    dict(size={"height": 224, "width": 224}),
    dict(crop_size={"height": 224, "width": 112}),
    dict(crop_size={"height": 223, "width": 223}),
    dict(crop_size=None),
    dict(crop_size=-14),
    dict(size={"shortest_edge": 200}),
    dict(size={"shortest_edge": 10**9}),
    dict(size=[256]),
    dict(size=True, crop_size=True),
  ],
)
def test_other_ways_to_fit_images_are_told_and_not_followed(
  reference_folder, caplog, changes
):
  samples.change_json(reference_folder / "preprocessor_config.json", **changes)
  assert formats.read(str(reference_folder)).sizes == {}
  (record,) = caplog.records
  said = record.getMessage()
  assert "preprocessor_config.json" in said and "--resize and --crop" in said
  (name, value), *_ = changes.items()
  assert f"{name}={value}" in said and "\n" not in said


def test_another_resampling_is_told(reference_folder, caplog):
  samples.change_json(reference_folder / "preprocessor_config.json", resample=2)
  assert formats.read(str(reference_folder)).sizes == {"resize": 256, "crop": 224}
  assert "has resample=2; images here are resized bicubically" in caplog.text


@pytest.mark.parametrize(
  "changes",
  [
    dict(image_mean=[0.5, 0.5, 0.5]),
    dict(image_std=[0.229, 0.224]),
    dict(image_mean=None),
    dict(do_normalize=False),
    dict(do_rescale=False),
    dict(rescale_factor=1),
    dict(rescale_factor=10**400),
    dict(image_mean="a\nb"),
    dict(image_mean={"a": 1}),
  ],
)
def test_other_values_of_pixels_are_refused(reference_folder, changes):
  samples.change_json(reference_folder / "preprocessor_config.json", **changes)
  (name, value), *_ = changes.items()
  wanted = (
    f"preprocessor_config.json has {name}={json_objects.shown(value)}, and images"
  )
  with pytest.raises(errors.UserError, match=re.escape(wanted)) as caught:
    formats.read(str(reference_folder))
  assert "\n" not in str(caught.value)
  assert formats.read(str(reference_folder / "model.safetensors")).sizes == {}
