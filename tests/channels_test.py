"""Images of 13 channels through the whole product, and what a config says of them."""

import json
import subprocess
import sys

import bands
import children
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from dinojax import (
  backbone,
  channels,
  dino,
  embed,
  errors,
  export,
  preflight,
  start,
)
from dinojax.data import layouts, sources
from dinojax.pictures import crops, teachers
from dinojax.weights import formats, image_fields, model
from experiments import distill, satellite, vitg14
from tests.weights import samples

BANDS = bands.BANDS
RATES = ("time", "images_per_second", "data_wait_share", "step_images_per_second")


def set_fields(config, fields):
  with config.unlocked():
    for path, value in fields.items():
      *groups, name = path.split(".")
      group = config
      for part in groups:
        group = group[part]
      group[name] = value
  return config


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bands")
  bands.write_images(folder)
  return folder


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
  """Workdirs of a whole run and of one that resumed, and what they printed."""
  whole, halved = (tmp_path_factory.mktemp(name) for name in ("whole", "halved"))
  result = subprocess.run(
    [sys.executable, bands.__file__, images, whole, halved],
    env=children.environment(1),
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  return whole, halved, result.stderr


def logged(workdir, after):
  entries = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return [
    {k: x for k, x in entry.items() if k not in RATES and "input" not in k}
    for entry in entries
    if entry["step"] > after
  ]


@pytest.mark.process
def test_a_run_of_13_bands_resumes_bit_for_bit_and_is_evaluated_by_knn(runs):
  whole, halved, _ = runs
  records = [
    json.loads((run / "checkpoints/4/record/metadata").read_text())
    for run in (whole, halved)
  ]
  assert records[0]["checksums"] == records[1]["checksums"]
  assert logged(whole, after=2) == logged(halved, after=2)
  assert 0 <= logged(whole, after=3)[-1]["knn_top1_k3"] <= 1
  assert records[0]["config"]["data"]["channels"] == BANDS


@pytest.mark.process
def test_a_run_says_which_colours_are_off_and_substitutes_what_does_not_fit(runs):
  *_, printed = runs
  off = "warning: jitter.saturation of config.augment are off: they need 8-bit RGB, and"
  assert printed.count(f"{off} images have 13 channels of uint16") == 2  # once a run
  (line,) = {x for x in printed.splitlines() if "corrupt record substituted" in x}
  assert "10.npy: 12 channels of uint16, where config.data.channels" in line


@pytest.mark.process
def test_its_teacher_embeds_exports_and_gives_equal_features(runs, images, tmp_path):
  loaded = backbone.load(str(runs[0]))
  assert loaded.layout == layouts.Layout(BANDS, "uint16")
  out = tmp_path / "features.npy"
  options = dict(checkpoint=str(runs[0]), images=f"folder:{images}", out=str(out))
  with flagsaver.flagsaver(**options, workers=0, batch_size=16):
    embed.main([])
  features = np.load(out)
  rows = np.flatnonzero(np.isfinite(features).all(1))
  assert features.shape == (24, 16) and len(rows) == 23
  pixels = np.stack([np.load(x) for x in sorted(images.glob("*/*.npy"))[:3]])
  crop = pixels[:, 2:18, 4:20]
  made = export.stablehlo(export.of_backbone(loaded), 16)
  program = jax.export.deserialize(made.serialize())
  seen = loaded(crop)
  of_program = zip(
    program.call(crop), (seen.image, seen.cls, seen.patches), strict=True
  )
  for found, wanted in of_program:
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.process
def test_its_crops_are_drawn_for_people(runs, images):
  _, origin = teachers.load(str(runs[0]))
  source = sources.open_source(f"folder:{images}", field="--images")
  drawn = teachers.run_crops(source, origin.config, count=2)
  table = crops.table(drawn)
  assert drawn[0].image.shape == (20, 24, 3) and len(table.rows) == 2
  assert drawn[0].global_crops.dtype == np.uint8


def test_weights_of_rgb_start_a_run_of_13_bands(images, tmp_path):
  config = bands.config(images, tmp_path)
  fields = {name: config.backbone[name] for name in model.ARCHITECTURE}
  rgb = samples.random_weights(fields | image_fields.usual(3))
  path = str(tmp_path / "rgb.safetensors")
  formats.write(rgb, path, "huggingface")
  set_fields(config, {"init.backbone": path, "init.rgb": (3, 2, 1)})
  preflight.check(config, devices=1)
  noise = jax.tree.map(lambda x: jnp.zeros(x.shape), model.shapes(fields))
  trees = [{"backbone": noise, "dino_head": {}} for _ in range(2)]
  state = start.from_weights(dino.TrainState(0, *trees, None, {}), config)
  kernel = np.asarray(state.teacher["backbone"]["patch_embed"]["kernel"])
  slices = kernel.reshape(-1, BANDS, 16)
  theirs = rgb.params["backbone"]["patch_embed"]["kernel"]
  np.testing.assert_array_equal(slices[:, [3, 2, 1]], theirs.reshape(-1, 3, 16))
  assert not np.delete(slices, [3, 2, 1], axis=1).any()
  set_fields(config, {"init.backbone": "", "init.run": path, "init.rgb": ()})
  message = (
    f"config.init.run: {path} is another network: of 3 channels, and config.backbone of"
    " 13 (config.data.channels)"
  )
  with pytest.raises(errors.UserError) as caught:
    start.from_weights(state, config)
  assert str(caught.value) == message


THIRTEEN = {"data.channels": 13, "backbone.image_dtype": "uint16"}
STATISTICS = {"backbone.mean": (0.1,) * 13, "backbone.std": (0.1,) * 13}
MEASURE = (
  ", one for each of config.data.channels=13; python -m dinojax.measure --images=SOURCE"
  " prints them"
)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"data.channels": 0},
      "config.data.channels=0 must be a whole number from 1 to 16",
    ),
    (
      {"data.channels": 17},
      "config.data.channels=17 must be a whole number from 1 to 16",
    ),
    (
      THIRTEEN,
      "config.backbone.mean=(0.485, 0.456, 0.406) must be 13 numbers, 0.0 to 1"
      f"{MEASURE}",
    ),
    (
      THIRTEEN | {"backbone.mean": (0.1,) * 13},
      "config.backbone.std=(0.229, 0.224, 0.225) must be 13 numbers, 1e-06 to 1"
      f"{MEASURE}",
    ),
    (
      {"backbone.image_dtype": "float32", "backbone.mean": (0.1, float("nan"), 0.1)},
      "config.backbone.mean=(0.1, nan, 0.1) must be three numbers, finite",
    ),
    (
      {"backbone.image_dtype": "int8"},
      "config.backbone.image_dtype='int8' must be one of uint8, uint16, float32",
    ),
    (
      {"backbone.max_value": 10_000.0},
      "config.backbone.max_value=10000.0 must be 0 or 255 with"
      " config.backbone.image_dtype=uint8",
    ),
    (
      {"backbone.max_value": -1.0},
      "config.backbone.max_value=-1.0 must be at least 0.0",
    ),
    (
      THIRTEEN | STATISTICS | {"init.rgb": (3, 2, 13), "init.backbone": "a.pth"},
      "config.init.rgb=(3, 2, 13) must be (), or the places of red, green and blue"
      " among config.data.channels=13, from 0, with a config.init.backbone",
    ),
    (
      THIRTEEN | STATISTICS | {"init.rgb": (3, 2, 1)},
      "config.init.rgb=(3, 2, 1) must be (), or the places of red, green and blue"
      " among config.data.channels=13, from 0, with a config.init.backbone",
    ),
  ],
)
def test_what_cannot_be_is_one_line_at_the_start(fields, message):
  config = set_fields(vitg14.get_config(), fields)
  with pytest.raises(errors.UserError) as caught:
    preflight.check(config, devices=None)
  assert str(caught.value) == message


def test_a_teacher_of_other_channels_is_refused():
  config = set_fields(distill.get_config(), THIRTEEN | STATISTICS)
  with pytest.raises(errors.UserError, match=r"^config.distill.backbone.image_dtype="):
    channels.check(config)
  set_fields(config, {"distill.backbone.image_dtype": "uint16"})
  message = (
    r"^config.distill.backbone.mean=\(0.485, 0.456, 0.406\) is of 3 channels, and"
    r" config.data.channels=13: both see the same crops$"
  )
  with pytest.raises(errors.UserError, match=message):
    channels.check(config)


def test_colours_that_are_off_are_one_line_and_only_where_they_are_asked_for():
  line = (
    "jitter.saturation, jitter.hue, grey_prob, solarize_prob of config.augment are off:"
    " they need 8-bit RGB, and images have 13 channels of uint16"
  )
  config = set_fields(vitg14.get_config(), THIRTEEN | STATISTICS)
  assert preflight.doubts(config) == [line]
  assert preflight.doubts(satellite.get_config()) == []
  assert preflight.doubts(vitg14.get_config()) == []
  set_fields(config, {"data.channels": 3})
  assert preflight.doubts(config)[0].startswith("solarize_prob of config.augment are")
