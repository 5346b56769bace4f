"""Depth maps are read in metres from PNG and NumPy files; faults are one line each."""

import io

import numpy as np
import pytest
from PIL import Image

from dinojax import errors
from dinojax.data import dense_records, depth_maps, sources


def png(values, mode="I;16"):
  file = io.BytesIO()
  dtype = {"I;16": np.uint16, "L": np.uint8, "RGB": np.uint8}[mode]
  Image.fromarray(np.asarray(values, dtype)).save(file, "PNG")
  return file.getvalue()


def npy(values):
  file = io.BytesIO()
  np.save(file, values, allow_pickle=True)
  return file.getvalue()


def decode(stored, name="a.png", **changes):
  usual = dict(scale=0.001, max_pixels=1_000) | changes
  return depth_maps.decode(stored, name=name, **usual)


def test_units_of_a_png_are_scaled_and_arrays_are_metres():
  found = decode(png([[0, 1500], [10_000, 65_535]]))
  np.testing.assert_allclose(found, [[0, 1.5], [10, 65.535]], rtol=1e-6)
  assert found.dtype == np.float32
  assert decode(png([[7]], "L"), scale=1 / 256).tolist() == [[7 / 256]]
  for dtype in (np.float16, np.float32, np.float64):
    found = decode(npy(np.array([[1.5, np.nan]], dtype)), "b.NPY")
    np.testing.assert_array_equal(found, np.float32([[1.5, np.nan]]))


@pytest.mark.parametrize(
  ("stored", "name", "message"),
  [
    (b"", "a.png", "its depth map has zero bytes"),
    (b"abc", "a.npy", "its depth map cannot be read: "),
    (b"abc", "a.png", "its depth map cannot be read: "),
    (png(np.zeros((2, 2, 3)), "RGB"), "a.png", "it is RGB; give a grey PNG of 16 bits"),
    (png(np.zeros((40, 40))), "a.png", "40x40 pixels are more than max_pixels=1000"),
    (npy(np.zeros((40, 40))), "a.npy", "40x40 pixels are more than max_pixels=1000"),
    (npy(np.zeros((4, 4, 1))), "a.npy", "it is float64 [4, 4, 1]; give floats [H, W]"),
    (npy(np.zeros((4, 4), int)), "a.npy", "it is int64 [4, 4]; give floats [H, W], in"),
    (npy(np.array([{}])), "a.npy", "it is object [1]; give floats [H, W], in metres"),
    (png(np.full((4, 4), 9))[:-30], "a.png", "its depth map cannot be read: "),
  ],
)
def test_other_files_are_one_line(stored, name, message):
  with pytest.raises(ValueError) as raised:
    decode(stored, name)
  assert message in str(raised.value) and "\n" not in str(raised.value)


def test_eigens_crop_is_that_of_nyu_and_in_proportion_elsewhere():
  kept = depth_maps.inside((480, 640), "eigen")
  assert kept[45:471, 41:601].all() and kept.sum() == 426 * 560
  assert depth_maps.inside((240, 320), "eigen").sum() == (236 - 22) * (300 - 20)
  assert depth_maps.inside((3, 4), "none").all()


@pytest.fixture
def folders(tmp_path):
  for name in ("images", "depth"):
    (tmp_path / name).mkdir()
  for i, name in enumerate("abc"):
    image = Image.fromarray(np.full((4, 6, 3), 40 * i, np.uint8))
    image.save(tmp_path / "images" / f"{name}.png")
  (tmp_path / "depth" / "a.png").write_bytes(png(np.full((4, 6), 2000)))
  (tmp_path / "depth" / "b.npy").write_bytes(npy(np.full((8, 12), 3.5, np.float32)))
  return tmp_path


def open_pairs(folder, more="", depth="depth"):
  spec = f"folder:{folder}/images?depth={folder}/{depth}{more}"
  return sources.open_source(spec, field="--train")


def test_images_and_depth_maps_of_one_name_are_pairs(folders):
  source = open_pairs(folders)
  assert isinstance(source, sources.DepthSource)
  assert not isinstance(source, sources.DenseSource)
  found = [source[i]["depth_map"] for i in range(len(source))]
  assert [(x.shape, float(x[0, 0])) for x in found] == [((4, 6), 2.0), ((8, 12), 3.5)]
  assert source.notes[-1] == "leaves out 1 image (the first: c) without a depth map"
  other = open_pairs(folders, "&scale=0.0001")
  assert other[0]["depth_map"][0, 0] == pytest.approx(0.2)
  assert other.fingerprint != source.fingerprint


@pytest.mark.parametrize(
  ("more", "depth", "message"),
  [
    ("&scale=0", "depth", "must be folder:IMAGES?masks=FOLDER, perhaps with &ignore=0"),
    ("&scale=x", "depth", "or folder:IMAGES?depth=FOLDER, perhaps with &scale=0.001"),
    ("&ignore=0", "depth", "or folder:IMAGES?depth=FOLDER, perhaps with &scale=0.001"),
    ("", "nothing", "/nothing does not exist"),
  ],
)
def test_wrong_specs_are_one_line(folders, more, depth, message):
  with pytest.raises(errors.UserError) as raised:
    open_pairs(folders, more, depth)
  assert message in str(raised.value) and "\n" not in str(raised.value)


def test_what_lies_out_of_the_range_or_crop_is_unknown_and_shapes_must_fit(folders):
  maps = dense_records.DepthMaps(1.0, 3.0)
  metres = np.array([[0.5, 1.0], [3.0, 3.1], [np.nan, np.inf]], np.float32)
  record = {"image": np.zeros((3, 2, 3), np.uint8), "depth_map": metres}
  assert maps.read(record)[1].tolist() == [[0, 1], [3, 0], [0, 0]]
  with pytest.raises(ValueError, match="is of another shape than the upright image"):
    maps.read(record | {"image": np.zeros((3, 9, 3), np.uint8)})


def test_embedded_scenes_have_digits_half_as_large_at_twice_the_distance():
  source = sources.open_source("embedded:depth:test", field="f")
  assert isinstance(source, sources.DepthSource) and len(source) == 128
  found = np.unique([record["depth_map"] for record in source])
  assert found[0] == 0 and found[1:].tolist() == sorted(
    float(np.float32(36) / side) for side in range(12, 37)
  )
  for record in source:
    ink = record["image"][..., 0] >= 128
    assert not ((record["depth_map"] > 0) & ~ink).any()
  again = sources.open_source("embedded:depth:test", field="f")
  assert again.fingerprint == source.fingerprint
