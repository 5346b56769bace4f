"""A page is one file, whose policy runs nothing but its own scripts."""

import base64
import hashlib
import html.parser
import json
import re

import pytest

from dinojax.pages import markup, page

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u2028\udcff"


class Elements(html.parser.HTMLParser):
  """Names of the elements of a text, and the texts of its scripts and styles."""

  def __init__(self, text):
    super().__init__()
    self.names, self.contents, self.within = [], [], None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.names.append(tag)
    self.within = tag if tag in ("script", "style") and not attrs else None

  def handle_data(self, data):
    if self.within:
      self.contents.append((self.within, data))
      self.within = None


def policy_of(text):
  (policy,) = re.findall(r'Security-Policy" content="([^"]+)"', text)
  return dict(part.split(" ", 1) for part in policy.split("; "))


def test_text_in_elements_and_attributes_stays_text():
  element = markup.tag(
    "p", HOSTILE, markup.tag("b", "bold"), title=HOSTILE, hidden=True
  )
  assert Elements(element).names == ["p", "b"]
  assert "onerror" in element
  table = markup.table([[HOSTILE, HOSTILE]], head=[HOSTILE])
  assert "img" not in Elements(table).names


def test_data_for_scripts_come_back_as_they_were_and_end_no_element():
  content = {HOSTILE: [HOSTILE, 1.5, None]}
  element = markup.data("numbers", content)
  assert Elements(element).names == ["script"]
  inner = re.fullmatch(r"<script [^>]*>(.*)</script>", element, re.DOTALL)[1]
  assert "<" not in inner
  assert json.loads(inner) == content


def test_numbers_that_are_not_finite_are_no_data():
  with pytest.raises(ValueError, match="JSON compliant"):
    markup.data("numbers", [float("nan")])


@pytest.mark.parametrize("name", ["onclick", "style"])
def test_handlers_and_styles_in_attributes_are_refused(name):
  with pytest.raises(ValueError, match=name):
    markup.tag("p", "text", **{name: "x"})


def test_the_policy_permits_the_scripts_and_styles_of_the_page_alone():
  first = page.Fragment(markup.tag("p", "one"), script="one();", library="lib = 1;")
  second = page.Fragment(markup.tag("p", "two"), style="p{}", library="lib = 1;")
  text = page.render(HOSTILE, [first, second])
  policy = policy_of(text)
  assert policy["default-src"] == policy["base-uri"] == "'none'"
  assert "unsafe" not in str(policy)
  found = {"script": [], "style": []}
  for kind, content in Elements(text).contents:
    digest = hashlib.sha256(content.encode()).digest()
    found[kind].append(f"'sha256-{base64.b64encode(digest).decode()}'")
  assert policy["script-src"].split() == found["script"]
  assert policy["style-src"].split() == found["style"]
  assert len(found["script"]) == 2  # the library, once, and the script
  assert "img" not in Elements(text).names


def test_a_page_without_scripts_permits_none():
  policy = policy_of(page.render("empty", [page.Fragment(markup.tag("p", "text"))]))
  assert policy["script-src"] == "'none'"


def test_a_script_that_would_end_its_element_is_refused():
  with pytest.raises(ValueError, match="script"):
    page.render("t", [page.Fragment(markup.Html(""), script="'</SCRIPT>'")])


def test_names_that_are_no_unicode_can_be_written():
  text = page.render("t", [page.Fragment(markup.tag("p", HOSTILE))])
  assert b"\\udcff" in page.encode(text)
