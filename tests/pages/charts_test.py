"""The curves of a page answer to the pointer, in a browser, under the page's policy."""

import json
import time

import browser
import pytest
import recorded

from dinojax.pages import charts, run_files, run_page

HOSTILE = "<img src=x onerror=alert(1)>"
# Returns when nothing is wider than that; a script that does not return is an error.
FITS = """
const [width, done] = arguments;
(function look() {
  document.documentElement.scrollWidth <= width ? done() : setTimeout(look, 10);
})();
"""
# Remembers what is written onto canvases.
SPY = """
window.written = [];
for (const name of ["fillText", "strokeText"]) {
  const write = CanvasRenderingContext2D.prototype[name];
  CanvasRenderingContext2D.prototype[name] = function (text, ...where) {
    window.written.push(text);
    return write.call(this, text, ...where);
  };
}
"""
# [x, y] of each red pixel of a chart, as shares of its plot's width and height.
RED = """
const [figure] = arguments, canvas = figure.querySelector("canvas");
const [frame, plot] = [canvas, figure.querySelector(".u-over")]
  .map((x) => x.getBoundingClientRect());
const {data, width} = canvas.getContext("2d")
  .getImageData(0, 0, canvas.width, canvas.height);
const found = [], scale = frame.width / width;
for (let i = 0; i < data.length; i += 4) {
  if (data[i] !== 0xb3 || data[i + 1] !== 0x26 || data[i + 2] !== 0x1e) continue;
  const x = i / 4 % width * scale, y = Math.floor(i / 4 / width) * scale;
  const at = [frame.left + x - plot.left, frame.top + y - plot.top];
  found.push([at[0] / plot.width, at[1] / plot.height]);
}
return found;
"""
pytestmark = [
  pytest.mark.browser,
  pytest.mark.skipif(charts.library() is None, reason="needs uplot-python"),
]


def steps(last=500):
  return [recorded.numbers(step) for step in range(10, last + 1, 10)]


def write_page(folder, *workdirs):
  out = folder / "report.html"
  run_page.write([run_files.read(workdir) for workdir in workdirs], out)
  return out


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  """A browser that shows the page of a run whose texts are hostile."""
  folder = tmp_path_factory.mktemp("page")
  lines = [{**line, HOSTILE: 1.0} for line in steps()]
  lines[20]["loss_dino"] += 2
  lines.append({"step": 250, "knn_top1_k10": 0.5})
  results = {"raw pixels": {"knn_top1_k10": 0.4}, HOSTILE: {"knn_top1_k10": 0.3}}
  events = [
    recorded.started(device=HOSTILE, data=HOSTILE),
    recorded.event("alarm", 50, text=HOSTILE),
    recorded.event("skipped", 100, text=f"corrupt: {HOSTILE}.jpg"),
    recorded.event("failed", 150, text=HOSTILE),
    recorded.started(200, after=200.5),
    recorded.event("comparison", 500, results=results),
  ]
  workdir = recorded.write(
    folder / HOSTILE,
    lines,
    events=events,
    settings={HOSTILE: HOSTILE},
    checkpoints=(250, 500),
  )
  with browser.opened(write_page(folder, workdir)) as driver:
    yield driver


def first(page):
  """The first chart, when all are drawn: the loss that the alarm judges."""
  page.execute_async_script(
    "const done = arguments[0];"
    "(function look() {"
    "  document.all.charts.dataset.missing === '0' ? done() : setTimeout(look, 10);"
    "})();"
  )
  return page.find_element("css selector", "#charts figure")


@pytest.fixture
def chart(page):
  """The first chart of a page that was just opened."""
  page.refresh()
  return first(page)


def state(page):
  """Axis, smoothing and range of the charts."""
  found = dict(page.execute_script("return {...document.all.charts.dataset}"))
  return found["axis"], float(found["smoothing"]), json.loads(found["range"])


def point(page, chart, share, *, press=False):
  """Moves the pointer to a share of the width of a chart's plot."""
  from selenium.webdriver import ActionChains

  over = chart.find_element("css selector", ".u-over")
  page.execute_script("arguments[0].scrollIntoView({block: 'center'})", over)
  x = round((share - 0.5) * over.size["width"])
  actions = ActionChains(page, duration=50).move_to_element_with_offset(over, x, 0)
  if press:
    actions.click_and_hold().move_by_offset(round(0.25 * over.size["width"]), 0)
    actions.release()
  actions.perform()


def choose(page, identifier, value):
  """Sets an input, as its user would."""
  page.execute_script(
    "const input = document.getElementById(arguments[0]);"
    "input.value = arguments[1];"
    "for (const kind of ['input', 'change']) input.dispatchEvent(new Event(kind));"
    "return new Promise(requestAnimationFrame)",
    *(identifier, value),
  )


def texts(chart, selector):
  return [found.text for found in chart.find_elements("css selector", selector)]


def test_the_page_says_how_old_it_is(page, chart):
  script = "return document.all.age.dataset.written"
  assert abs(float(page.execute_script(script)) - time.time()) < 600
  page.execute_cdp_cmd(
    "Page.addScriptToEvaluateOnNewDocument",
    {"source": "const now = Date.now; Date.now = () => now() + 3 * 3600000;"},
  )
  page.refresh()
  assert page.find_element("id", "age").text == ", 3 hours ago"


def test_each_chart_is_drawn_with_its_name_and_curves(page, chart):
  titles = texts(page, "#charts h3")
  assert titles[0] == "DINO + iBOT loss"
  assert HOSTILE in titles
  assert len(page.find_elements("css selector", "#charts canvas")) == len(titles)
  assert texts(chart, ".legend button") == ["loss_dino + loss_ibot"]


def test_levels_are_named_in_the_legend_and_never_under_the_curves(page, chart):
  page.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": SPY})
  page.refresh()
  chart = first(page)
  level = recorded.NOTHING_LEARNT
  names = [f"nothing learnt: {level:.2f}", f"collapse: {0.02 * level:.3f}"]
  assert texts(chart, ".legend .level") == names
  knn = page.find_elements("css selector", "#charts figure")[1]
  others = ["raw pixels, top1_k10: 40%", f"{HOSTILE}, top1_k10: 30%"]
  assert texts(knn, ".legend .level") == others
  written = page.execute_script("return window.written")
  assert "training steps" in written  # the axes
  assert not any(name.split(":")[0] in " ".join(written) for name in names + others)


def test_alarms_and_errors_are_marked_above_the_plot_at_their_steps(page, chart):
  signs = ["checkpoint on disk", "restart", "alarm", "error that ended the run"]
  assert texts(page, "#marks .sign") == signs
  found = page.execute_script(RED, chart)
  assert {round(10 * x) for x, _ in found} == {1, 3}  # steps 50 and 150 of 500
  assert all(y < 0 for _, y in found)


def test_hovering_shows_the_values_at_the_pointer_in_all_charts(page, chart):
  assert texts(chart, ".legend .value") == [""]
  point(page, chart, 0.42)
  assert chart.find_element("class name", "at").text == "training steps: 210"
  line = recorded.numbers(210)
  (value,) = texts(chart, ".legend .value")
  expected = line["loss_dino"] + line["loss_ibot"] + 2  # its spike
  assert float(value) == pytest.approx(expected, rel=1e-4)
  everywhere = texts(page, "#charts .at")
  assert everywhere.count("training steps: 210") >= len(everywhere) - 1  # k-NN has one
  assert "training steps: 250" in everywhere


def test_dragging_zooms_all_charts_and_a_double_click_shows_the_whole_run(page, chart):
  from selenium.webdriver import ActionChains

  assert state(page)[2] == [0, 500]
  point(page, chart, 0.5, press=True)
  low, high = state(page)[2]
  assert (low, high) == (pytest.approx(250, abs=8), pytest.approx(375, abs=8))
  plot = chart.find_element("css selector", ".u-over")
  ActionChains(page).double_click(plot).perform()
  assert state(page)[2] == [0, 500]


def test_the_x_axis_can_be_steps_images_or_hours(page, chart):
  choose(page, "axis", "images")
  assert state(page)[2] == [0, 500 * 64]
  chart = first(page)  # drawn again
  point(page, chart, 0.5)
  assert chart.find_element("class name", "at").text == "images seen: 16,000"
  choose(page, "axis", "hours")
  assert state(page)[2][1] == pytest.approx(499.5 / 60, rel=1e-3)
  chart = first(page)
  point(page, chart, 0.5)
  assert chart.find_element("class name", "at").text.startswith("minutes at work")


def test_smoothing_is_an_average_over_what_came_before(page, chart):
  choose(page, "smoothing", "0.9")
  assert state(page)[1] == 0.9
  assert page.find_element("id", "smoothed").text == "0.9"
  chart = first(page)  # drawn again
  point(page, chart, 0.42)
  (value,) = texts(chart, ".legend .value")
  total = weight = 0.0
  for step in range(10, 211, 10):
    line = recorded.numbers(step)
    loss = line["loss_dino"] + line["loss_ibot"] + 2 * (step == 210)
    total, weight = 0.9 * total + 0.1 * loss, 0.9 * weight + 0.1
  assert float(value) == pytest.approx(total / weight, rel=1e-4)


def test_a_click_on_its_name_hides_a_curve(page, chart):
  for pressed in ("false", "true"):
    chart.find_element("css selector", ".legend button").click()
    choose(page, "smoothing", "0.5")  # draws all again
    chart = first(page)
    button = chart.find_element("css selector", ".legend button")
    assert button.get_attribute("aria-pressed") == pressed


def test_hostile_text_is_text_and_does_nothing(page, chart):
  assert page.find_elements("tag name", "img") == []
  assert page.find_element("tag name", "h1").text == HOSTILE
  # Handlers do not run, even where a bug let one in.
  page.execute_script(
    "window.alert = () => { window.hit = true; };"
    "const div = document.createElement('div');"
    "div.innerHTML = arguments[0]; document.body.append(div);",
    HOSTILE.replace("src=x", "src=data:,"),
  )
  page.execute_async_script("setTimeout(arguments[0], 200)")
  assert page.execute_script("return window.hit") is None
  refused = [line["message"] for line in page.get_log("browser")]
  assert any("Content Security Policy" in message for message in refused)


def test_nothing_is_wider_than_the_window_and_dark_is_dark(tmp_path):
  long = "a" * 200
  lines = [{**line, long: 1.0} for line in steps(50)]
  workdirs = [
    recorded.write(tmp_path / name / long, lines, settings={long: {long: name}})
    for name in "ab"
  ]
  for runs in (workdirs, workdirs[:1]):
    out = write_page(tmp_path / runs[-1].parent.name, *runs)
  with browser.opened(out, dark=True) as driver:
    for path in tmp_path.glob("*/report.html"):
      driver.get(path.as_uri())
      count = 2 if path.parent.name == "b" else 1
      assert len(texts(first(driver), ".legend button")) == count
      for width in (1_400, 380):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_async_script(FITS, width)  # charts follow the window soon
    paper = driver.find_element("tag name", "html")
    assert "rgba(20, 23, 27" in paper.value_of_css_property("background-color")


def test_a_page_of_thinned_curves_opens_at_once(tmp_path):
  # As many points as a run of any length has at most.
  out = write_page(tmp_path, recorded.write_long(tmp_path / "run", 15_000))
  with browser.opened(out) as driver:
    first(driver)
    content = driver.execute_script("return document.all.curves.textContent")
    wanted = json.loads(content)["charts"]
    assert {len(line["mean"]) for line in wanted[0]["lines"]} == {1_500}
    assert len(driver.find_elements("css selector", "#charts canvas")) == len(wanted)
    seconds = driver.execute_script(
      "const t = performance.timing; return (t.loadEventEnd - t.navigationStart) / 1000"
    )
    assert seconds < 10  # under 2 where nothing else runs
