"""Lines lie where they should, sheets hold their cells, and pages keep image bytes."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from dinojax.pictures import drawing, tables


def test_an_outline_is_on_its_path_and_nowhere_else():
  image = np.zeros((60, 80, 3), np.uint8)
  square = np.array([[20, 10], [60, 10], [60, 40], [20, 40]])
  drawn = drawing.outlined(image, [square], [(255, 0, 0)], width=2)
  red = drawn[..., 0] > 200
  assert red[9:11, 25:55].all() and red[39:41, 25:55].all()
  assert red[15:35, 19:21].all() and red[15:35, 59:61].all()
  assert not drawn[15:35, 25:55].any() and not drawn[:7].any()
  assert not image.any()


def test_an_outline_along_the_border_is_drawn_whole():
  image = np.zeros((30, 40, 3), np.uint8)
  border = np.array([[0, 0], [40, 0], [40, 30], [0, 30]])
  drawn = drawing.outlined(image, [border], [(0, 255, 0)], width=2)[..., 1]
  for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
    assert edge[1:-1].min() > 200
  assert drawn[4:-4, 4:-4].max() == 0


def test_hidden_patches_cover_their_pixels_alone():
  image = np.full((8, 12, 3), 200, np.uint8)
  mask = np.array([[True, False, False], [False, False, True]])
  covered = (drawing.hidden(image, mask) != 200).all(-1)
  np.testing.assert_array_equal(covered, mask.repeat(4, 0).repeat(4, 1))


def test_heat_gets_lighter_from_0_to_1():
  colours = drawing.heat(np.linspace(0, 1, 50)).astype(int)
  assert (np.diff(colours @ [299, 587, 114]) > 0).all()
  np.testing.assert_array_equal(
    drawing.heat(np.array([-1.0, 2.0, np.nan]))[0], drawing.heat(np.array([0.0]))[0]
  )
  assert drawing.stretched(np.ones(3)).tolist() == [0, 0, 0]


def test_captions_fit_their_width():
  for text in ("", "short", "long " * 50, "\N{SNOWMAN}\udc80"):
    assert drawing.caption(text, 90).shape == (drawing.LINE, 90, 3)
  long, longer = (drawing.caption("word " * n, 90) for n in (30, 50))
  np.testing.assert_array_equal(long, longer)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 17])
def test_every_thumbnail_is_in_its_place_in_the_sprites(count):
  thumbs = np.random.default_rng(0).integers(256, size=(count, 5, 5, 3), dtype=np.uint8)
  sheet, columns = drawing.sprites(thumbs)
  for i, thumb in enumerate(thumbs):
    top, left = 5 * (i // columns), 5 * (i % columns)
    np.testing.assert_array_equal(sheet[top : top + 5, left : left + 5], thumb)


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3)])
def test_narrow_images_are_fitted_too(shape):
  image = np.zeros((*shape, 3), np.uint8)
  assert max(drawing.fitted(image, 64).shape) == 64


def table(rows):
  return tables.Table("name", "Title", "Text.", ("a", "b"), rows)


def test_a_sheet_has_every_cell_and_the_frames_of_marks():
  cells = [
    tables.Cell(np.full((20, 30, 3), 40 + i, np.uint8), "x", mark)
    for i, mark in enumerate((0, 1, -1))
  ]
  sheet = tables.sheet(table([cells, cells[:1]]), side=48)
  assert sheet.shape == (
    drawing.LINE + 2 * (48 + drawing.LINE) + 3 * drawing.GAP,
    3 * (48 + drawing.GAP),
    3,
  )
  colours = {tuple(x) for x in sheet.reshape(-1, 3).tolist()}
  assert {(40, 40, 40), (41, 41, 41), (42, 42, 42)} <= colours
  assert {drawing.RIGHT, drawing.WRONG} <= colours


def test_maps_keep_every_bit_on_a_page_and_photographs_are_small():
  rng = np.random.default_rng(0)
  squares = rng.integers(256, size=(6, 7, 3), dtype=np.uint8)
  photo = np.full((900, 1_200, 3), 90, np.uint8)
  section = tables.section(
    table([[tables.Cell(squares, squares=True), tables.Cell(photo, mark=-1)]])
  )
  first, second = section["rows"][0]
  assert (first["mark"], second["mark"]) == ("", "wrong")

  def decoded(uri):
    data = io.BytesIO(base64.b64decode(uri.partition(",")[2]))
    return np.asarray(Image.open(data).convert("RGB"))

  np.testing.assert_array_equal(decoded(first["image"]), squares)
  assert decoded(second["image"]).shape == (168, 224, 3)
