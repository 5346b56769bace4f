"""HTML from untrusted text: every string is escaped, unless it is `Html` already."""

import html
import json
from collections.abc import Iterable
from typing import Any

VOID = {"br", "img", "input", "meta", "hr", "link"}


class Html(str):
  """Text that is HTML: made by this module, or by hand from nothing but literals."""


def tag(
  name: str, /, *children: str, **attributes: str | int | float | bool | None
) -> Html:
  """An element with escaped children and attribute values.

  Args:
    name: of the element; as the names of attributes, never from data.
    children: text, or Html.
    attributes: `class_` is class, `data_run` data-run; True is an attribute without a
      value, False and None none.

  Raises:
    ValueError: an attribute would hold a script, or a style, which the page's policy
      forbids.
  """
  words = [name]
  for key, value in attributes.items():
    key = key.rstrip("_").replace("_", "-")
    if key.startswith("on") or key == "style":
      raise ValueError(f"{key}= in <{name}>: use a script, or a class")
    if value is True:
      words.append(key)
    elif value is not None and value is not False:
      words.append(f'{key}="{html.escape(str(value))}"')
  opened = f"<{' '.join(words)}>"
  return Html(opened if name in VOID else f"{opened}{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
  """Parts one after the other; those that are no Html are escaped."""
  return Html(
    "".join(
      part if isinstance(part, Html) else html.escape(str(part)) for part in parts
    )
  )


def table(
  rows: Iterable[Iterable[str]], *, head: Iterable[str] = (), class_: str = ""
) -> Html:
  """A table; the first cell of a row is its heading."""
  head = list(head)
  body = [
    tag("tr", *(tag("td" if i else "th", cell) for i, cell in enumerate(row)))
    for row in rows
  ]
  parts = [tag("thead", tag("tr", *(tag("th", cell) for cell in head)))] if head else []
  return tag(
    "div",
    tag("table", *parts, tag("tbody", *body), class_=class_ or None),
    class_="scroll",
  )


def data(identifier: str, content: Any) -> Html:
  """JSON for a script to read; nothing in it can end its element.

  Raises:
    ValueError: a number is not finite.
  """
  text = json.dumps(content, allow_nan=False, separators=(",", ":"))
  for character in "<>&":
    text = text.replace(character, f"\\u{ord(character):04x}")
  return Html(
    f'<script type="application/json" id="{html.escape(identifier)}">{text}</script>'
  )
