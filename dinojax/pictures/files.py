"""Files of an album: a PNG for each exhibit, and pictures.json for a page."""

import json
import pathlib

import numpy as np

from dinojax import durable
from dinojax.pages import panels
from dinojax.pictures import album, drawing, exhibits, planes, tables


def sheets(shown: album.Album, views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """{"components": uint8 [H, W, 3], ...}: each exhibit as one image."""
  found = {x.name: tables.sheet(x) for x in exhibits.all_tables(shown)}
  many = shown.many
  for name, points in views.items():
    found[f"map_{name.lower()}"] = planes.drawn(points, many.labels, many.classes)
  return found


def make_folder(out: pathlib.Path) -> None:
  """Makes a folder, if it is not there; UserError if it cannot be made."""
  with durable.os_errors_as_user_errors(out):
    out.mkdir(parents=True, exist_ok=True)


def write(
  shown: album.Album, out: pathlib.Path, *, about: str, umap: bool = False
) -> list[dict]:
  """Writes OUT/NAME.png of each exhibit, and OUT/pictures.json; returns its sections.

  Args:
    shown: of `album.collect`.
    out: a folder, which is made.
    about: one line of text: whose pictures these are.
    umap: whether the map also shows UMAP's plane.

  Raises:
    UserError: a file cannot be written, or UMAP cannot be had.
  """
  views = exhibits.map_views(shown.many, umap=umap)
  sections = exhibits.all_sections(shown, views)
  make_folder(out)
  for name, image in sheets(shown, views).items():
    with durable.atomic_write(out / f"{name}.png", out=out) as file:
      file.write(drawing.encode(image, "png"))
  with durable.atomic_write(out / panels.FILE, out=out) as file:
    text = json.dumps({"about": about, "sections": sections})
    file.write(text.encode())
  return sections
