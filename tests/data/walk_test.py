"""Patterns match what glob's do, and each file once, whatever links there are."""

import glob

import pytest

from dinojax.data import files, walk


@pytest.fixture
def tree(tmp_path, monkeypatch):
  for name in ("0.tar", "a/1.tar", "a/b/2.tar", "a/b/x.txt", "[c]/3.tar", ".d/4.tar"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize(
  "pattern",
  [
    *("*.tar", "a/*.tar", "**/*.tar", "a/**/*.tar", "**/b/*", "**", "no/**/*.tar"),
    *("{root}/**/*.tar", "{root}/*/**/*.tar", "{root}/**/a/**/2.tar", "**/**/2.*"),
    *("[[]c]/**/*.tar", "{root}/*.t**r", "**/[0-2].tar"),
  ],
)
def test_a_pattern_matches_as_glob_does(tree, pattern):
  pattern = pattern.format(root=tree)
  whole = {path for path in glob.glob(pattern, recursive=True) if path}
  assert walk.matches(pattern, []) == whole


def test_a_link_to_a_folder_that_it_lies_in_is_not_followed(tree, caplog):
  (tree / "a" / "up").symlink_to(tree)
  (tree / "a" / "b" / "up").symlink_to("..")  # glob would not end
  (tree / "there").symlink_to(tree / ".d")
  found = files.match(f"{tree}/**/*.tar", "--images", kind="tar")
  names = ["0.tar", "[c]/3.tar", "a/1.tar", "a/b/2.tar", "there/4.tar"]
  assert [file.path for file in found] == [f"{tree}/{name}" for name in names]
  (line,) = caplog.messages
  assert line.startswith("--images skips 2 links (the first: a/b/up), each to a folder")
