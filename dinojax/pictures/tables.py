"""Tables of pictures: cells with captions, as one image, and as a section of a page."""

import base64
from typing import NamedTuple

import numpy as np

from dinojax.pictures import drawing

SIDE = 112  # pixels of a cell in a sheet
PAGE_SIDE = 224  # of the longer side of a photograph on a page
MARKS = {1: "right", -1: "wrong", 0: ""}


class Cell(NamedTuple):
  """A picture: uint8 [H, W, 3], its caption, and `similarity.marks` of it.

  squares: a map with a pixel for each patch, to be enlarged without smoothing.
  """

  image: np.ndarray
  caption: str = ""
  mark: int = 0
  squares: bool = False


class Table(NamedTuple):
  """Rows of cells below heads; name: of its file; text: what it shows, in sentences."""

  name: str
  title: str
  text: str
  heads: tuple[str, ...]
  rows: list[list[Cell]]


def sheet(table: Table, *, side: int = SIDE) -> np.ndarray:
  """The table as one image: heads, and cells of `side` pixels with their captions."""
  columns = max(map(len, table.rows))
  captions = any(cell.caption for row in table.rows for cell in row)
  heads = [drawing.caption(head, side) for head in table.heads]
  heads += [drawing.caption("", side)] * (columns - len(heads))
  rows = [drawing.stack(heads[:columns], axis=1)] if any(table.heads) else []
  for row in table.rows:
    parts = []
    for cell in row:
      part = _square(cell, side)
      parts.append(drawing.captioned(part, cell.caption) if captions else part)
    rows.append(drawing.stack(parts, axis=1))
  return drawing.stack(rows, axis=0)


def _square(cell: Cell, side: int) -> np.ndarray:
  """A cell's picture, centred on a white square, with a frame that shows its mark."""
  if cell.squares:
    height, width = cell.image.shape[:2]
    zoom = max(side // max(height, width), 1)
    picture = drawing.fitted(cell.image.repeat(zoom, 0).repeat(zoom, 1), side)
  else:
    picture = drawing.fitted(cell.image, side)
  if cell.mark:
    colour = drawing.RIGHT if cell.mark > 0 else drawing.WRONG
    picture = drawing.framed(picture, colour)
  height, width = picture.shape[:2]
  canvas = np.full((side, side, 3), 255, np.uint8)
  top, left = (side - height) // 2, (side - width) // 2
  canvas[top : top + height, left : left + width] = picture
  return canvas


def uri(image: np.ndarray, kind: str) -> str:
  """An image as a data URI, of a `kind` of `drawing.encode`."""
  data = base64.b64encode(drawing.encode(image, kind)).decode()
  return f"data:image/{kind};base64,{data}"


def photo_uri(image: np.ndarray) -> str:
  """A photograph of at most PAGE_SIDE pixels as a data URI, small."""
  larger = max(image.shape[:2]) > PAGE_SIDE
  return uri(drawing.fitted(image, PAGE_SIDE) if larger else image, "webp")


def section(table: Table) -> dict:
  """The table in JSON, for `panels.fragment`."""
  rows = [
    [
      {
        "image": uri(cell.image, "png") if cell.squares else photo_uri(cell.image),
        "caption": cell.caption,
        "mark": MARKS[cell.mark],
      }
      for cell in row
    ]
    for row in table.rows
  ]
  return {
    "kind": "table",
    **{"name": table.name, "title": table.title, "text": table.text},
    **{"heads": list(table.heads), "rows": rows},
  }
