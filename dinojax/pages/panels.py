"""Panels of a page: sections of pictures as HTML, with the style and script they need.

Sections are what `tables.section` and `sections` make, and pictures.json holds. What
comes from outside, such as names of files and of classes, is escaped.
"""

import json
import pathlib
import re
from collections.abc import Sequence

from dinojax import errors
from dinojax.pages import markup, page

HERE = pathlib.Path(__file__).parent
FILE = "pictures.json"
FOLDER = "pictures"  # of a run's workdir
URI = re.compile(r"data:image/(png|webp);base64,[A-Za-z0-9+/]*={0,2}")
MARKS = {"right": "\N{CHECK MARK} ", "wrong": "\N{BALLOT X} ", "": ""}
NAME = re.compile(r"[a-z][a-z0-9_]*")


def of_folder(folder: pathlib.Path) -> list[page.Fragment]:
  """The panels of a folder's pictures.json; [] where there is none.

  Raises:
    UserError: it is not one of ours.
  """
  path = folder / FILE
  if not path.exists():
    return []
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    return [fragment(content["sections"], about=content["about"])]
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise errors.UserError(
      f"{path} holds no pictures that can be shown ({type(error).__name__}: {error});"
      " remove it, or write it again by python -m dinojax.report"
    ) from error


def fragment(sections: Sequence[dict], *, about: str = "") -> page.Fragment:
  """The panels of sections, below one line of text, if any.

  Raises:
    UserError: a section is not one of ours.
  """
  parts = [markup.tag("p", about, class_="faint")] if about else []
  parts += [_panel(section) for section in sections]
  script, style = ((HERE / f"panels.{kind}").read_text() for kind in ("js", "css"))
  return page.Fragment(markup.join(parts), script=script, style=style)


def _panel(section: dict) -> markup.Html:
  kinds = {"table": _table, "similarity": _similarity, "map": _map}
  kind, name = section.get("kind"), str(section.get("name"))
  if kind not in kinds or not NAME.fullmatch(name):
    raise errors.UserError(
      f"pictures.json has a section of kind={kind!r}, name={name!r}; write it again by"
      " python -m dinojax.report"
    )
  return markup.tag(
    "section",
    markup.tag("h2", section["title"]),
    markup.tag("p", section["text"]),
    kinds[kind](section),
    class_="pictures",
    id=f"pictures-{name}",
  )


def _table(section: dict) -> markup.Html:
  wide = max(map(len, section["rows"]), default=0)
  heads = [*section["heads"], *[""] * (wide - len(section["heads"]))]
  top = markup.tag("tr", *(markup.tag("th", head, scope="col") for head in heads))
  rows = (
    markup.tag("tr", *(_cell(x, head) for x, head in zip(row, heads, strict=False)))
    for row in section["rows"]
  )
  return markup.tag(
    "div",
    markup.tag("table", markup.tag("thead", top), markup.tag("tbody", *rows)),
    **{"class_": "scroll", "role": "region", "tabindex": 0},
    aria_label=section["title"],
  )


def _cell(cell: dict, head: str) -> markup.Html:
  caption, mark = cell["caption"], cell["mark"]
  # PNG are maps with a pixel for each patch, WebP photographs.
  squares = "squares" if cell["image"].startswith("data:image/png") else ""
  image = markup.tag(
    "img",
    src=_uri(cell["image"]),
    alt=": ".join(filter(None, (head, caption))),
    class_=" ".join(filter(None, (mark, squares))) or None,
    loading="lazy",
  )
  text = markup.tag("figcaption", MARKS[mark], caption)
  return markup.tag("td", markup.tag("figure", image, text))


def _similarity(section: dict) -> markup.Html:
  height, width = (int(side) for side in section["grid"])
  data = {key: section[key] for key in ("grid", "stops")}
  data["images"] = [
    {key: _uri(image[key]) for key in ("image", "matrix")}
    for image in section["images"]
  ]
  figures = []
  for i, image in enumerate(section["images"]):
    choose = markup.tag(
      "canvas",
      **{"class_": "pictures-choose", "width": 224, "height": 224, "tabindex": 0},
      role="application",
      aria_label=f"{image['caption']}, {width} by {height} patches. Choose one by a"
      " click or the arrow keys.",
    )
    heat = markup.tag(
      "canvas",
      **{"class_": "pictures-heat", "width": width, "height": height, "role": "img"},
      aria_label="Similarity to the chosen patch",
    )
    chosen = markup.tag("output", aria_live="polite")
    figures.append(
      markup.tag(
        "figure",
        markup.tag("div", choose, heat, class_="pictures-pair"),
        markup.tag("figcaption", image["caption"], markup.tag("br"), chosen),
        data_image=i,
      )
    )
  return markup.tag(
    "div",
    *figures,
    markup.data("pictures-data-similarity", data),
    class_="pictures-similarity",
  )


def _map(section: dict) -> markup.Html:
  data = {key: section[key] for key in ("views", "extent", "labels", "names")}
  data |= {key: section[key] for key in ("classes", "colours", "columns", "side")}
  data["sprite"] = _uri(section["sprite"])
  plane = markup.tag(
    "canvas",
    **{"tabindex": 0, "role": "application"},
    aria_label="Map of the images. Arrow keys move from image to image, plus and minus"
    " zoom, 0 shows all.",
  )
  hover = markup.tag(
    "div",
    markup.tag("canvas", width=128, height=128),
    markup.tag("output", aria_live="polite"),
    class_="pictures-hover",
    hidden=True,
  )
  return markup.tag(
    "div",
    markup.tag("div", class_="pictures-tools"),
    markup.tag(
      "div",
      plane,
      markup.tag("div", class_="pictures-mark", hidden=True),
      hover,
      class_="pictures-plane",
    ),
    markup.tag("div", class_="pictures-legend"),
    markup.data("pictures-data-map", data),
    class_="pictures-map",
  )


def _uri(text: str) -> str:
  """A data URI of an image, and nothing else."""
  if not URI.fullmatch(text):
    raise errors.UserError(
      f"pictures.json has {text[:40]!r} where an image has to be; write it again by"
      " python -m dinojax.report"
    )
  return text
