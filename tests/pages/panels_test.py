"""Panels show what their sections hold, and text from outside stays text."""

import html.parser
import json
import re

import browser
import numpy as np
import pytest

from dinojax import errors
from dinojax.pages import page, panels
from dinojax.pictures import sections, tables

HOSTILE = "<img src=x onerror=\"document.title='hit'\">.jpg"
GRID = (4, 6)


def photos(count, side=32):
  rng = np.random.default_rng(0)
  return rng.integers(256, size=(count, side, side, 3), dtype=np.uint8)


def tokens(count):
  return np.random.default_rng(1).normal(size=(count, GRID[0] * GRID[1], 5))


def all_sections(images=2, dots=30, name=HOSTILE):
  """A section of each kind, with names of files and classes from outside."""
  cell = tables.Cell(photos(1)[0], name, -1)
  table = tables.Table("gallery", "Gallery", name, (name,), [[cell, cell]])
  rng = np.random.default_rng(2)
  return [
    tables.section(table),
    sections.similarity_section(
      photos(images), tokens(images), [name] * images, grid=GRID
    ),
    sections.map_section(
      {"PCA": rng.normal(size=(dots, 2)), "UMAP": rng.normal(size=(dots, 2))},
      photos(dots, 8),
      np.arange(dots) % 3 - 1,
      [name] * dots,
      (name, "</script><script>document.title='hit'</script>"),
    ),
  ]


def render(title, some):
  return page.render(title, [panels.fragment(some, about=title)])


class Elements(html.parser.HTMLParser):
  """Elements of a page: (name, attributes)."""

  def __init__(self, text):
    super().__init__()
    self.found = []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))


def test_text_from_outside_makes_no_element_attribute_or_end_of_the_data():
  text = render(HOSTILE, all_sections())
  plain = render("plain", all_sections(name="plain"))
  elements, expected = Elements(text).found, Elements(plain).found
  assert [(tag, list(x)) for tag, x in elements] == [
    (tag, list(x)) for tag, x in expected
  ]
  for _, attributes in elements:
    assert not [x for x in attributes if x.startswith("on") or x == "style"]
  data = re.findall(
    r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL
  )
  assert json.loads(data[-1])["names"][0] == HOSTILE


def test_only_pictures_of_ours_and_sections_of_ours_are_shown():
  (table, *_) = all_sections()
  table["rows"][0][0]["image"] = 'x" onerror="alert(1)'
  with pytest.raises(errors.UserError, match="where an image has to be"):
    panels.fragment([table])
  with pytest.raises(errors.UserError, match="kind='poster'"):
    panels.fragment([{**table, "kind": "poster"}])
  with pytest.raises(errors.UserError, match="kind='table', name='<b>'"):
    panels.fragment([{**table, "name": "<b>"}])


@pytest.mark.parametrize("text", ["{", "[]", '{"sections": 1, "about": ""}', "null"])
def test_a_damaged_file_of_pictures_is_refused_by_its_path(tmp_path, text):
  (tmp_path / panels.FILE).write_text(text)
  with pytest.raises(errors.UserError, match=rf"{panels.FILE} holds no pictures"):
    panels.of_folder(tmp_path)


def test_marks_are_words_for_eyes_that_see_no_colours():
  text = render("x", all_sections()[:1])
  assert text.count("\N{BALLOT X} ") == 2 and 'class="wrong"' in text


CHOSEN = """
const figure = document.querySelector(".pictures-similarity figure");
const map = figure.querySelector(".pictures-heat");
const pixels = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
return [Number(figure.dataset.chosen), Array.from(pixels),
        figure.querySelector("output").textContent];
"""


def wait(driver, script):
  from selenium.webdriver.support import wait

  return wait.WebDriverWait(driver, 10).until(lambda x: x.execute_script(script))


@pytest.mark.browser
def test_a_click_on_a_patch_changes_the_map_of_similarity_as_do_arrow_keys(tmp_path):
  path = tmp_path / "page.html"
  path.write_text(render(HOSTILE, all_sections()), encoding="utf-8")
  ready = "return !!document.querySelector('figure[data-chosen]')"
  x = tokens(1)[0] / np.linalg.norm(tokens(1)[0], axis=1, keepdims=True)
  with browser.opened(path) as driver:
    from selenium.webdriver import ActionChains, Keys

    wait(driver, ready)
    chooser = driver.find_element("css selector", ".pictures-choose")
    before = driver.execute_script(CHOSEN)
    assert before[0] == 2 * 6 + 3  # the middle

    def check(chosen):
      """The map is that of this patch: lightest there, darkest where it has to be."""
      found, pixels, text = driver.execute_script(CHOSEN)
      assert found == chosen
      light = np.reshape(pixels, (-1, 4))[:, :3] @ [299, 587, 114]
      assert light.argmax() == chosen
      assert light.argmin() == (x[chosen] @ x.T).argmin()
      assert f"row {chosen // 6 + 1}, column {chosen % 6 + 1}" in text
      assert f"from {(x[chosen] @ x.T).min():.2f}" in text

    check(15)
    where = (1.5 / 6 - 0.5) * 224, (3.5 / 4 - 0.5) * 224  # row 4, column 2
    ActionChains(driver).move_to_element_with_offset(
      chooser, round(where[0]), round(where[1])
    ).click().perform()
    check(3 * 6 + 1)
    assert driver.execute_script(CHOSEN)[1] != before[1]
    chooser.send_keys(Keys.ARROW_UP, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    check(2 * 6 + 3)
    chooser.send_keys(*[Keys.ARROW_LEFT] * 9)  # stays at the border
    check(2 * 6)
    assert driver.title == HOSTILE
    assert driver.find_elements("css selector", "img[src=x]") == []


@pytest.mark.browser
def test_the_map_shows_the_image_of_a_dot_and_hides_other_classes(tmp_path):
  path = tmp_path / "page.html"
  path.write_text(render("map", all_sections()[2:]), encoding="utf-8")
  with browser.opened(path) as driver:
    from selenium.webdriver import ActionChains, Keys

    wait(driver, "return !!document.querySelector('[data-ready]')")
    canvas = driver.find_element("css selector", ".pictures-plane canvas")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    hover = driver.find_element("css selector", ".pictures-hover")
    section = all_sections()[2]
    x, y = section["views"][0]["points"][8:10]  # of image 4, class 0
    side = canvas.size["width"]
    at = [round(z / section["extent"] * (side - 24) + 12 - side / 2) for z in (x, y)]
    ActionChains(driver).move_to_element_with_offset(canvas, *at).perform()
    assert hover.is_displayed()
    assert hover.text == f"{HOSTILE}: {HOSTILE}"
    root = driver.find_element("css selector", ".pictures-map")
    assert root.get_attribute("data-current") == "4"
    canvas.send_keys(Keys.ARROW_RIGHT)
    moved = int(root.get_attribute("data-current"))
    assert section["views"][0]["points"][2 * moved] > x
    buttons = driver.find_elements("css selector", ".pictures-legend button")
    assert [button.text for button in buttons] == section["classes"]
    buttons[1].click()
    ActionChains(driver).move_to_element_with_offset(canvas, *at).perform()
    assert root.get_attribute("data-current") != "4" or not hover.is_displayed()
