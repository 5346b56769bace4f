"""What can be known of the container image without a container engine."""

import importlib.metadata
import pathlib
import re

from packaging import markers, requirements, specifiers, utils

ROOT = pathlib.Path(__file__).parent.parent.parent
LINES = (ROOT / "launch" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
PYTHON = "3.12"
PLATFORMS = ("cpu", "cuda", "tpu")


def pins():
  """{package: version} of constraints.txt."""
  lines = (ROOT / "launch" / "constraints.txt").read_text().splitlines()
  pairs = [line.split("==") for line in lines if not line.startswith("#")]
  return {utils.canonicalize_name(name): version for name, version in pairs}


def test_every_package_that_setup_py_asks_for_is_pinned_within_its_range():
  pinned = pins()
  python = {**markers.default_environment(), "python_version": PYTHON}
  for text in importlib.metadata.requires("dinojax"):
    wanted = requirements.Requirement(text)
    extras = [e for e in PLATFORMS if f'"{e}"' in text]
    if "extra ==" in text and not extras:
      continue
    if wanted.marker and not any(
      wanted.marker.evaluate({**python, "extra": extra}) for extra in extras or [""]
    ):
      continue
    assert pinned[utils.canonicalize_name(wanted.name)] in wanted.specifier, text


def test_jax_and_what_it_comes_with_are_of_one_version():
  pinned = pins()
  names = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt")
  assert len({pinned[name] for name in names}) == 1


def test_what_is_copied_is_there_and_reaches_the_builder():
  copies = [line.split()[1:-1] for line in LINES if line.startswith("COPY ")]
  sent = re.findall("^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
  for [source] in copies:
    assert (ROOT / source).exists()
    assert pathlib.Path(source).parts[0] in sent


def test_the_base_is_one_version_of_the_python_that_packages_are_pinned_for():
  [base] = [line for line in LINES if line.startswith("FROM ")]
  version = re.match(r"FROM python:(\d+\.\d+)\.\d+-", base)[1]
  assert version == PYTHON
  wanted = importlib.metadata.metadata("dinojax")["Requires-Python"]
  assert version in specifiers.SpecifierSet(wanted)


def test_what_runs_has_no_rights():
  users = [line for line in LINES if line.startswith(("USER ", "ENTRYPOINT "))]
  assert users[0].startswith("USER ") and not users[0].startswith(
    ("USER 0", "USER root")
  )
