"""Charts of a page: curves that answer to the pointer, drawn by uPlot in the browser.

uPlot comes with the package uplot-python, of which only its two static files are used.
Beside it, Bokeh was tried: it took ten times as long to open, and needs inline styles.
"""

import importlib.util
import pathlib
from collections.abc import Sequence

from dinojax.pages import curves, markup, page, run_record

HERE = pathlib.Path(__file__).parent
SCRIPT = "\n".join(
  (HERE / f"{name}.js").read_text() for name in ("curves", "marks", "charts")
)
STYLE = (HERE / "charts.css").read_text()


def library() -> tuple[str, str] | None:
  """(JavaScript, CSS) of uPlot; None if it is not installed."""
  spec = importlib.util.find_spec("uplot")
  for folder in (spec and spec.submodule_search_locations) or ():
    files = [
      pathlib.Path(folder, "static", f"uPlot.{x}") for x in ("iife.js", "min.css")
    ]
    if all(file.is_file() for file in files):
      return files[0].read_text(), files[1].read_text()
  return None


def fragment(runs: Sequence[run_record.Run]) -> page.Fragment:
  """The curves of one run, or of several over each other."""
  title = markup.tag("h2", "Curves")
  drawn, left_out = curves.charts(runs)
  if not drawn:
    return page.Fragment(
      markup.join([title, markup.tag("p", "Nothing is logged yet.", id="no-curves")])
    )
  found = library()
  if found is None:
    text = "Curves need uPlot: pip install uplot-python, and write this page again."
    return page.Fragment(markup.join([title, markup.tag("p", text, id="no-curves")]))
  content = {"runs": [curves.describe(run) for run in runs], "charts": drawn}
  html = markup.join(
    [
      title,
      _note(drawn, left_out),
      markup.data("curves", content),
      _controls(),
      markup.tag("div", class_="charts", id="charts"),
    ]
  )
  javascript, css = found
  return page.Fragment(html, script=SCRIPT, style=f"{css}\n{STYLE}", library=javascript)


def _controls() -> markup.Html:
  axes = (("steps", "steps"), ("images", "images"), ("hours", "time at work"))
  options = [markup.tag("option", text, value=value) for value, text in axes]
  return markup.tag(
    "div",
    markup.tag("label", "x axis ", markup.tag("select", *options, id="axis")),
    markup.tag(
      "label",
      "smoothing ",
      markup.tag(
        *("input",), id="smoothing", type="range", min=0, max=0.99, step=0.01, value=0
      ),
      markup.tag("output", "0", id="smoothed"),
    ),
    markup.tag("button", "whole run", id="whole", type="button"),
    markup.tag(
      "span",
      "Drag to zoom, double-click for the whole run, click a name to hide its curve.",
      class_="faint",
    ),
    markup.tag("span", class_="faint", id="marks"),
    class_="controls",
  )


def _note(drawn, left_out) -> markup.Html:
  """What the charts do not show."""
  most, lines = max(line["per_point"] for chart in drawn for line in chart["lines"]), []
  if most > 1:
    lines.append(
      f"Long curves are thinned: a point is the mean of up to {most:,} logged steps in"
      " a row, and the band around it spans their least and greatest value."
    )
  if left_out:
    lines.append(f"{left_out:,} more numbers are in metrics.jsonl, and not drawn.")
  return markup.join(markup.tag("p", line, class_="faint") for line in lines)
