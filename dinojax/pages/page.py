"""Page of a run: one HTML file that needs no network, under a strict content policy.

Nothing is loaded, and no script or style runs but those of the page, by their hashes:
text that gets in from a config or the name of a file stays text.
"""

import base64
import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Sequence

from dinojax.pages import markup

STYLE = (pathlib.Path(__file__).parent / "page.css").read_text()


@dataclasses.dataclass(frozen=True)
class Fragment:
  """A part of a page.

  html: its elements. script: JavaScript that runs when all of the page is there, in a
  function of its own. style: CSS. library: JavaScript that runs before all scripts.
  """

  html: markup.Html
  script: str = ""
  style: str = ""
  library: str = ""


def render(title: str, fragments: Sequence[Fragment]) -> str:
  """The whole file.

  Args:
    title: of the window; text.
    fragments: in their order. What several have as a library or style stands once.

  Raises:
    ValueError: a script or style holds what would end its element.
  """
  styles = list(dict.fromkeys([STYLE, *(x.style for x in fragments if x.style)]))
  libraries = list(dict.fromkeys(x.library for x in fragments if x.library))
  scripts = [
    f'(() => {{ "use strict";\n{x.script}\n}})();' for x in fragments if x.script
  ]
  for text in (*styles, *libraries, *scripts):
    if re.search(r"</(script|style)|<!--", text, re.IGNORECASE):
      raise ValueError("a script or style of a page may not hold </script, or <!--")
  policy = "; ".join(
    (
      "default-src 'none'",
      "img-src data:",
      f"style-src {_hashes(styles)}",
      f"script-src {_hashes([*libraries, *scripts])}",
      "base-uri 'none'",
      "form-action 'none'",
    )
  )
  head = (
    markup.tag("meta", charset="utf-8"),
    markup.Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
    markup.tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
    markup.tag("meta", name="color-scheme", content="light dark"),
    markup.tag("title", title),
    *(markup.Html(f"<style>{text}</style>") for text in styles),
  )
  body = (
    markup.tag("main", *(x.html for x in fragments)),
    *(markup.Html(f"<script>{text}</script>") for text in (*libraries, *scripts)),
  )
  return markup.join(
    [
      markup.Html("<!DOCTYPE html>\n"),
      markup.tag(
        "html", markup.tag("head", *head), markup.tag("body", *body), lang="en"
      ),
      "\n",
    ]
  )


def encode(text: str) -> bytes:
  """The bytes of a page; what no Unicode can be, as in names of files, is escaped."""
  return text.encode(errors="backslashreplace")


def _hashes(texts: Sequence[str]) -> str:
  """Sources of a content policy that permit these texts; none if there are none."""
  digests = (hashlib.sha256(encode(text)).digest() for text in texts)
  found = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
  return " ".join(found) or "'none'"
