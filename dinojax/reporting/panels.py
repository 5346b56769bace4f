"""Panels of a page: sections of pictures as HTML, with the style and script they need.

Whatever comes from outside, such as names of files and of classes, is escaped, and the
page needs neither inline handlers, nor style attributes, nor eval: it works under
`policy`, which permits nothing but what stands in the file.
"""

import base64
import hashlib
import html
import json
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from dinojax import errors

HERE = pathlib.Path(__file__).parent
URI = re.compile(r"data:image/(png|webp);base64,[A-Za-z0-9+/]*={0,2}")
MARKS = {"right": "\N{CHECK MARK} ", "wrong": "\N{BALLOT X} ", "": ""}
NAME = re.compile(r"[a-z][a-z0-9_]*")


class Fragment(NamedTuple):
  """What a page includes: html where it stands, css and js once, text each."""

  html: str
  css: str
  js: str


def fragment(sections: Sequence[dict]) -> Fragment:
  """The panels of sections, as `tables.section` and `sections` make them.

  Raises:
    UserError: a section is not one of ours.
  """
  parts = [_panel(section) for section in sections]
  css, js = ((HERE / f"panels.{kind}").read_text() for kind in ("css", "js"))
  return Fragment("\n".join(parts), css, js)


def page(title: str, sections: Sequence[dict]) -> str:
  """A whole page of sections alone, that opens from disk."""
  body, css, js = fragment(sections)
  name = html.escape(title)
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy(css, js)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>{css}</style>
</head>
<body class="pictures-page">
<h1>{name}</h1>
{body}
<script>{js}</script>
</body>
</html>
"""


def policy(css: str, js: str) -> str:
  """The Content-Security-Policy of a page with one style and one script."""
  style, script = (
    base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    for text in (css, js)
  )
  return (
    f"default-src 'none'; img-src data:; style-src 'sha256-{style}';"
    f" script-src 'sha256-{script}'"
  )


def _panel(section: dict) -> str:
  kinds = {"table": _table, "similarity": _similarity, "map": _map}
  kind, name = section.get("kind"), str(section.get("name"))
  if kind not in kinds or not NAME.fullmatch(name):
    raise errors.UserError(
      f"pictures.json has a section of kind={kind!r}, name={name!r}; write it again by"
      " python -m dinojax.report"
    )
  title, text = html.escape(section["title"]), html.escape(section["text"])
  return (
    f'<section class="pictures" id="pictures-{name}">\n<h2>{title}</h2>\n'
    f"<p>{text}</p>\n{kinds[kind](section)}\n</section>"
  )


def _table(section: dict) -> str:
  heads = [html.escape(head) for head in section["heads"]]
  wide = max(map(len, section["rows"]), default=0)
  heads += [""] * (wide - len(heads))
  top = "".join(f'<th scope="col">{head}</th>' for head in heads)
  rows = [
    "<tr>"
    + "".join(_cell(cell, head) for cell, head in zip(row, heads, strict=False))
    + "</tr>"
    for row in section["rows"]
  ]
  title = html.escape(section["title"])
  return (
    f'<div class="pictures-scroll" role="region" aria-label="{title}" tabindex="0">'
    f"<table><thead><tr>{top}</tr></thead><tbody>\n" + "\n".join(rows) + "</tbody>"
    "</table></div>"
  )


def _cell(cell: dict, head: str) -> str:
  """A cell of a table; head: escaped."""
  caption, mark = html.escape(cell["caption"]), cell["mark"]
  # PNG are maps with a pixel for each patch, WebP photographs.
  squares = cell["image"].startswith("data:image/png")
  alt = f"{head}: {caption}" if head and caption else head or caption
  classes = " ".join(filter(None, (mark, "squares" if squares else "")))
  return (
    f'<td><figure><img class="{classes}" src="{_uri(cell["image"])}" alt="{alt}"'
    f' loading="lazy"><figcaption>{MARKS[mark]}{caption}</figcaption></figure></td>'
  )


def _similarity(section: dict) -> str:
  height, width = (int(side) for side in section["grid"])
  figures = []
  for i, image in enumerate(section["images"]):
    caption = html.escape(image["caption"])
    figures.append(
      f'<figure data-image="{i}"><div class="pictures-pair">'
      f'<canvas class="pictures-choose" width="224" height="224" tabindex="0"'
      f' role="img" aria-label="{caption}, {width} by {height} patches. Choose one by'
      f' click or arrow keys."></canvas>'
      f'<canvas class="pictures-heat" width="{width}" height="{height}" role="img"'
      f' aria-label="similarity to the chosen patch"></canvas></div>'
      f'<figcaption>{caption}<br><output aria-live="polite"></output></figcaption>'
      "</figure>"
    )
  data = {key: section[key] for key in ("grid", "stops")}
  data["images"] = [
    {key: _uri(image[key]) for key in ("image", "matrix")}
    for image in section["images"]
  ]
  return f'<div class="pictures-similarity">{"".join(figures)}{_data(data)}</div>'


def _map(section: dict) -> str:
  data = {key: section[key] for key in ("views", "extent", "labels", "names")}
  data |= {key: section[key] for key in ("classes", "colours", "columns", "side")}
  data["sprite"] = _uri(section["sprite"])
  return (
    '<div class="pictures-map"><div class="pictures-tools"></div>'
    '<div class="pictures-plane"><canvas tabindex="0" role="application"'
    ' aria-label="Map of the images. Arrow keys move from image to image, plus and'
    ' minus zoom, 0 shows all."></canvas>'
    '<div class="pictures-mark" hidden></div>'
    '<div class="pictures-hover" hidden><canvas width="128" height="128"></canvas>'
    '<output aria-live="polite"></output></div></div>'
    f'<div class="pictures-legend"></div>{_data(data)}</div>'
  )


def _uri(text: str) -> str:
  """A data URI of an image, and nothing else."""
  if not URI.fullmatch(text):
    raise errors.UserError(
      f"pictures.json has {text[:40]!r} where an image has to be; write it again by"
      " python -m dinojax.report"
    )
  return text


def _data(data: dict) -> str:
  """JSON for the script, in an element that is not run."""
  text = json.dumps(data, separators=(",", ":"))
  for character in "<>&":  # no end of the element, and no comment, within it
    text = text.replace(character, f"\\u{ord(character):04x}")
  return f'<script type="application/json">{text}</script>'
