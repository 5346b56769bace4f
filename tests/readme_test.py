"""README files: what their commands name is there, under that name."""

import importlib.util
import pathlib
import re
import shlex

import pytest

from dinojax import config_fields

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [
  ROOT / "README.md",
  *(ROOT / folder / "README.md" for folder in ("experiments", "launch")),
  *sorted(ROOT.glob("dinojax/*/README.md")),
]
SHARED = [*ROOT.glob("dinojax/commands/*.py"), ROOT / "dinojax/runtime/processes.py"]
DEFINED = re.compile(r'(?:DEFINE_\w+|addoption|add_argument)\(\s*"(?:--)?(\w+)"')


def commands(page):
  """Returns the words of each command of a page that starts a Python file."""
  blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
  lines = "".join(blocks).replace("\\\n", " ").splitlines()
  parts = [part.strip() for line in lines for part in line.split(" && ")]
  return [shlex.split(part, comments=True) for part in parts if part[:7] == "python "]


def name(path):
  return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_command_starts_what_is_there_with_files_and_fields_that_are_there(page):
  for _, *words in commands(page):
    if words[0] == "-m":
      assert importlib.util.find_spec(words[1]), words
    else:
      assert (ROOT / words[0]).is_file(), words
    for option in words:
      flag, _, value = option.partition("=")
      if flag == "--config":
        assert (ROOT / value.split(":")[0]).is_file(), option
      if flag.startswith("--config."):
        assert is_field(flag[2:]), option


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_field_that_a_page_names_is_one_of_a_config(page):
  for field in re.findall(r"`(config\.(?!json)[\w.]+)[`=]", page.read_text()):
    assert is_field(field), field


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_an_option_of_a_command_is_one_of_its_file_or_of_what_commands_share(page):
  for _, *words in commands(page):
    file = words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0]
    text = "".join(path.read_text() for path in [ROOT / file, *SHARED])
    for word in words:
      if option := re.match(r"--(\w+)(?![\w.])", word):
        assert option[1] in {"config", *DEFINED.findall(text)}, words


def is_field(path):
  """Whether all configs, or some, have a field of that path or a group."""
  parent, _, last = path.rpartition(".")
  return path in config_fields.FIELDS or (
    last in config_fields.FIELDS.get(parent, "").split()
  )
