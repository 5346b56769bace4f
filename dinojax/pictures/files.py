"""Files of an album: a PNG for each exhibit, and pictures.json for a page."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from dinojax import durable
from dinojax.pictures import album, exhibits
from dinojax.reporting import drawing, planes, tables

NAME = "pictures.json"


def sheets(shown: album.Album, views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """{"components": uint8 [H, W, 3], ...}: each exhibit as one image."""
  found = {x.name: tables.sheet(x) for x in exhibits.all_tables(shown)}
  many = shown.many
  for name, points in views.items():
    found[f"map_{name.lower()}"] = planes.drawn(points, many.labels, many.classes)
  return found


def write(shown: album.Album, out: pathlib.Path, *, umap: bool = False) -> list[dict]:
  """Writes OUT/NAME.png of each exhibit, and OUT/pictures.json; returns its sections.

  Args:
    shown: of `album.collect`.
    out: a folder, which is made.
    umap: whether the map also shows UMAP's plane.

  Raises:
    UserError: a file cannot be written, or UMAP cannot be had.
  """
  views = exhibits.map_views(shown.many, umap=umap)
  sections = exhibits.all_sections(shown, views)
  with durable.os_errors_as_user_errors(out):
    out.mkdir(parents=True, exist_ok=True)
    for name, image in sheets(shown, views).items():
      (out / f"{name}.png").write_bytes(drawing.encode(image, "png"))
    (out / NAME).write_text(json.dumps({"sections": sections}))
  return sections


def read(folder: pathlib.Path) -> Sequence[dict]:
  """The sections that `write` has left in a folder; () where there are none."""
  path = folder / NAME
  return json.loads(path.read_text())["sections"] if path.exists() else ()
