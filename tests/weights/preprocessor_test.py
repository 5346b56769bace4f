"""A backbone keeps how its images are resized, cropped and normalised."""

import dataclasses
import re

import numpy as np
import pytest
import transformers

from dinojax import backbone, errors
from dinojax.networks import vit
from dinojax.weights import formats, json_objects, model
from tests.weights import samples

SIZES = {"resize": 9, "crop": 4}
OTHER = {"mean": (0.5, 0.25, 0.125), "std": (0.2, 0.3, 0.15)}


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


@pytest.mark.parametrize("sizes", [SIZES, {}])
@pytest.mark.parametrize(
  "names",
  [
    ("folder", "model.safetensors", "hf"),
    ("model.safetensors", "hf", "folder"),
    ("hf", "folder", "model.safetensors"),
  ],
)
def test_mean_and_deviation_travel_with_the_weights(tmp_path, names, sizes):
  weights = samples.random_weights(samples.PLAIN | dict(pool="cls") | OTHER)
  wanted = found = dataclasses.replace(weights, sizes=sizes)
  for name in names:
    path = str(tmp_path / name)
    kind = "dinojax" if name == "folder" else "huggingface"
    assert formats.write(found, path, kind) == []
    found = formats.read(path)
  samples.assert_same(found, wanted)
  processor = transformers.BitImageProcessor.from_pretrained(tmp_path / "hf")
  for name, values in OTHER.items():
    assert tuple(getattr(processor, f"image_{name}")) == values


def test_a_loaded_backbone_sees_images_by_its_own_mean_and_deviation():
  weights = samples.random_weights(samples.PLAIN | dict(pool="cls") | OTHER)
  loaded = backbone.of_weights(weights)
  images = np.random.default_rng(0).integers(256, size=(2, 4, 4, 3), dtype=np.uint8)
  pixels = ((images / 255 - OTHER["mean"]) / OTHER["std"]).astype(np.float32)
  wanted = samples.outputs(weights, pixels)
  scale = np.abs(wanted.cls).max()
  np.testing.assert_allclose(loaded(images).cls / scale, wanted.cls / scale, atol=1e-5)


def test_a_pth_of_sat_493m_has_its_statistics_by_its_name_and_others_imagenets(
  tmp_path,
):
  sat = dict(mean=(0.430, 0.411, 0.296), std=(0.213, 0.156, 0.143))
  plain = samples.random_weights(samples.PLAIN | dict(pool="cls"))
  weights = samples.random_weights(plain.backbone | sat)
  named = str(tmp_path / "dinov3_vitl16_pretrain_SAT493M-eadcf0ff.pth")
  assert formats.write(weights, named, "released") == []
  samples.assert_same(formats.read(named), weights)
  (lost,) = formats.write(weights, str(tmp_path / "other.pth"), "released")
  assert lost.startswith("mean=(0.43, 0.411, 0.296), std=(0.213, 0.156, 0.143): images")
  samples.assert_same(formats.read(str(tmp_path / "other.pth")), plain)


def test_the_fingerprint_of_weights_for_imagenets_statistics_is_what_it_was():
  """Old weights and runs do not have the fields."""
  weights = samples.random_weights(samples.PLAIN | dict(pool="cls"))
  older = {k: v for k, v in weights.backbone.items() if k not in OTHER}
  params = weights.params["backbone"]
  fingerprint = backbone.fingerprint(older, params)
  lists = {name: list(model.DEFAULTS[name]) for name in OTHER}
  for fields in (older, weights.backbone, older | lists):
    read = model.architecture(fields, "a checkpoint")
    assert backbone.fingerprint(read, params) == fingerprint
  assert backbone.fingerprint(weights.backbone | OTHER, params) != fingerprint


def test_weights_for_other_statistics_are_another_network(tmp_path):
  weights = samples.random_weights(samples.PLAIN | dict(pool="cls") | OTHER)
  other = f"mean={OTHER['mean']} there and config.backbone.mean={vit.IMAGENET_MEAN}"
  with pytest.raises(errors.UserError, match=re.escape(other)):
    model.fit(weights, model.DEFAULTS | samples.PLAIN | dict(pool="cls"), "w.pth")
  model.fit(weights, weights.backbone | {"mean": list(OTHER["mean"])}, "w.pth")


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
    dict(do_normalize=False),
    dict(do_rescale=False),
    dict(rescale_factor=1),
    dict(rescale_factor=10**400),
    dict(rescale_factor="a\nb"),
  ],
)
def test_other_scales_of_pixels_are_refused(reference_folder, changes):
  samples.change_json(reference_folder / "preprocessor_config.json", **changes)
  (name, value), *_ = changes.items()
  wanted = (
    f"preprocessor_config.json has {name}={json_objects.shown(value)}, and images"
  )
  with pytest.raises(errors.UserError, match=re.escape(wanted)) as caught:
    formats.read(str(reference_folder))
  assert "\n" not in str(caught.value)
  assert formats.read(str(reference_folder / "model.safetensors")).sizes == {}


@pytest.mark.parametrize(
  "changes",
  [
    dict(image_std=[0.229, 0.224]),
    dict(image_std=[0.229, 0.224, 0]),
    dict(image_mean=[0.5, 0.5, float("nan")]),
    dict(image_mean=[127, 127, 127]),
    dict(image_mean=None),
    dict(image_mean="a\nb"),
    dict(image_mean={"a": 1}),
  ],
)
def test_a_mean_or_deviation_that_is_none_is_refused(reference_folder, changes):
  samples.change_json(reference_folder / "preprocessor_config.json", **changes)
  (name, value), *_ = changes.items()
  wanted = (
    f"preprocessor_config.json has {name}={json_objects.shown(value)}; it must be three"
  )
  with pytest.raises(errors.UserError, match=re.escape(wanted)) as caught:
    formats.read(str(reference_folder))
  assert "\n" not in str(caught.value)


def test_known_statistics_in_float32_are_the_known_ones(reference_folder):
  values = [float(np.float32(x)) for x in vit.IMAGENET_MEAN]
  samples.change_json(reference_folder / "preprocessor_config.json", image_mean=values)
  assert formats.read(str(reference_folder)).backbone["mean"] == vit.IMAGENET_MEAN
