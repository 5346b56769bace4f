"""An album holds what a backbone computes of a source, and all of it is drawn."""

import dataclasses

import jax
import numpy as np
import pictures
import pytest
from PIL import Image

from dinojax import backbone, errors
from dinojax.data import sources
from dinojax.pages import panels
from dinojax.pictures import album, exhibits, files, prototypes, samples
from dinojax.weights import model

HOSTILE = "<img src=x onerror=alert(1)>.png"
SIZES = {"resize": 28, "crop": 24}
ARCHITECTURE = model.DEFAULTS | dict(
  **dict(patch_size=4, pos_grid=4, width=16, depth=1, heads=2, ffn="mlp"),
  **dict(registers=0, pool="gap"),
)


@pytest.fixture(scope="module")
def teacher():
  rng = np.random.default_rng(0)

  def noise(shapes):
    make = lambda x: rng.normal(size=x.shape, scale=0.3).astype(np.float32)  # noqa: E731
    return jax.tree.map(make, dict(shapes))

  params = noise(model.shapes(ARCHITECTURE))
  head = noise(model.head_shapes(hidden=8, bottleneck=4, prototypes=12, width=16))
  loaded = backbone.of_weights(model.Weights(ARCHITECTURE, {"backbone": params}))
  heads = prototypes.open_heads({"dino_head": head}, dtype="float32")
  return album.Teacher(loaded.module, loaded.params, heads, SIZES, devices=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Two classes of six images; one has a name to beware of, and one is corrupt."""
  root = tmp_path_factory.mktemp("photos")
  for i, pixels in enumerate(pictures.make(12, side=40)):
    path = root / "ab"[i % 2] / (HOSTILE if i == 4 else f"{i:02}.png")
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
  (root / "b" / "05.png").write_bytes(b"no image")
  return root


def collect(teacher, root, **changes):
  source = sources.open_source(f"folder:{root}", field="--images")
  how = dict(count=3, at_most=50, batch_size=4, workers=0)
  return album.collect(teacher, source, **{**how, **changes})


@pytest.fixture(scope="module")
def whole(teacher, folder):
  return collect(teacher, folder)


def test_features_are_the_backbones_and_corrupt_images_are_left_out(teacher, whole):
  many = whole.many
  assert len(many.labels) == len(many.names) == len(many.thumbs) == 11
  assert "05.png" not in many.names and HOSTILE in many.names
  assert many.labels.tolist() == [0] * 6 + [1] * 5
  batch = next(samples.batches(many.source, batch_size=12, workers=0, **SIZES))
  loaded = backbone.Backbone(teacher.module, teacher.params, "", SIZES)
  expected = np.asarray(loaded(batch["image"]).image)[batch["valid"]]
  np.testing.assert_allclose(many.features, expected, rtol=1e-5, atol=1e-5)
  for number, pixels in whole.cells.items():
    row = np.flatnonzero(batch["valid"])[number]
    np.testing.assert_array_equal(pixels, batch["image"][row])


def test_patches_are_of_more_pixels_than_evaluation_and_the_same_view(whole):
  some = whole.patches
  assert some.grid == 16 and some.images.shape == (3, 64, 64, 3)
  assert some.tokens.shape == (3, 256, 16) and some.attention.shape == (3, 2, 256)


def test_neighbours_are_right_where_labels_agree(whole):
  table = exhibits.gallery_table(whole)
  found, cosines = whole.neighbours
  assert found.shape == (8, 7) and len(table.rows) == 8
  labels = whole.many.labels
  for query, row, numbers, cosine in zip(
    whole.queries, table.rows, found, cosines, strict=True
  ):
    assert row[0].caption == "ab"[labels[query]]
    for cell, number, similar in zip(row[1:], numbers, cosine, strict=True):
      assert cell.mark == (1 if labels[number] == labels[query] else -1)
      assert cell.caption == f"{similar:.2f} {'ab'[labels[number]]}"
  x = whole.many.features / np.linalg.norm(whole.many.features, axis=1)[:, None]
  nearest = (x @ x.T - 3 * np.eye(11)).argmax(1)
  share = (labels[nearest] == labels).mean()
  assert f"For {share:.0%} of 11 images the nearest has their label." in table.text


def test_every_exhibit_becomes_a_file_and_a_panel(whole, tmp_path):
  sections = files.write(whole, tmp_path / "new" / "out", about=HOSTILE)
  names = [section["name"] for section in sections]
  assert names[:4] == ["components", "similarity", "attention", "neighbours"]
  assert names[4:] == ["prototypes_images", "prototypes_patches", "map"]
  for name in (*names[:-1], "map_pca"):
    picture = np.asarray(Image.open(tmp_path / "new" / "out" / f"{name}.png"))
    assert picture.std() > 5, name
  (fragment,) = panels.of_folder(tmp_path / "new" / "out")
  assert fragment.html.count("<section ") == 7
  assert "<img src=x" not in fragment.html
  assert fragment.html.startswith('<p class="faint">&lt;img src=x')
  assert panels.of_folder(tmp_path) == []


def test_a_patch_is_framed_in_the_middle_of_its_surroundings(whole):
  some = whole.patches
  number = 256 + 16 * 3 + 5  # of the second image
  window = exhibits.patch(some, number)
  zoom = len(window) // 12
  middle = window[4 * zoom : 8 * zoom, 4 * zoom : 8 * zoom]
  pixels = some.images[1, 12:16, 20:24].repeat(zoom, 0).repeat(zoom, 1)
  inside = slice(4, -4)
  np.testing.assert_array_equal(middle[inside, inside], pixels[inside, inside])
  for corner in (0, 15, 240, 255):  # at the border its surroundings are repeated
    assert exhibits.patch(some, corner).shape == window.shape


def test_one_image_has_pictures_of_patches_alone(teacher, folder, tmp_path):
  (tmp_path / "one.png").write_bytes((folder / "a" / "00.png").read_bytes())
  sections = files.write(collect(teacher, tmp_path), tmp_path / "out", about="")
  names = [section["name"] for section in sections]
  assert names[:3] == ["components", "similarity", "attention"]
  assert not {"neighbours", "map"} & set(names)


def test_a_source_without_a_readable_image_is_refused(teacher, tmp_path):
  (tmp_path / "0.png").write_bytes(b"no image")
  with pytest.raises(errors.UserError, match="none of 1 images is readable"):
    collect(teacher, tmp_path)


def test_features_that_are_not_finite_are_refused(teacher, folder):
  norm = {"scale": np.full(16, np.nan, np.float32), "bias": np.zeros(16, np.float32)}
  broken = dataclasses.replace(teacher, params={**teacher.params, "norm": norm})
  with pytest.raises(errors.UserError, match="patch tokens of images: 3 of 3 are not"):
    collect(broken, folder)


def test_records_are_evenly_spaced_and_named_without_their_folders(folder):
  source = sources.open_source(f"folder:{folder}", field="--images")
  assert samples.evenly(source, 3).indices == (0, 6, 11)
  assert samples.evenly(source, 99).indices == tuple(range(12))
  assert samples.short_name(source, 0) == "00.png"
  assert samples.evenly(source, 3).labels.tolist() == [0, 1, 1]
