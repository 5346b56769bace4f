"""Parsing of the command line: flags, and the experiment that --config names.

Free of JAX, as all that launchers import.
"""

import importlib.machinery
import pathlib
import re
import sys
import types

from absl import flags

from dinojax import errors
from dinojax.commands import mistakes

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = "experiments"


def parse_flags(argv: list[str], *, known_only: bool = False) -> list[str]:
  """The program's name and what stands behind the options.

  Args:
    argv: the command line.
    known_only: whether unknown options stay in what is returned.

  Raises:
    UserError: an option is wrong, or the experiment cannot be loaded.
    SystemExit: 0 after --help, which absl ends with 1.
  """
  find_experiments(argv)
  with mistakes.explained():
    try:
      return flags.FLAGS(argv, known_only=known_only)
    except SystemExit as end:
      # Nothing but the help ends a program here. A config file may, with another code.
      sys.exit(0 if end.code == 1 else end.code)


def find_experiments(argv: list[str]) -> None:
  """Lets the experiment of --config import `experiments` from wherever it lies.

  Its own folder comes first if that is its name, then those on Python's path, and at
  last that of this project.

  Raises:
    UserError: there is no such file.
  """
  named = [value for flag, value in _pairs(argv) if re.fullmatch("--?config", flag)]
  if not named:
    return
  path = pathlib.Path(named[-1].partition(":")[0]).absolute()
  if not path.is_file():
    raise errors.UserError(f"--config={named[-1]}: there is no such file")
  folders = [pathlib.Path(folder).absolute() for folder in sys.path]
  if path.parent.name == PACKAGE:
    folders.insert(0, path.parent.parent)
  found = dict.fromkeys(folder / PACKAGE for folder in (*folders, ROOT))
  package = types.ModuleType(PACKAGE, "Experiments of all these folders.")
  package.__path__ = [str(folder) for folder in found if folder.is_dir()]
  package.__spec__ = importlib.machinery.ModuleSpec(PACKAGE, None, is_package=True)
  sys.modules[PACKAGE] = package


def _pairs(argv):
  """(option, value) of each, written with "=" or as two words."""
  for word, following in zip(argv, [*argv[1:], ""], strict=True):
    flag, equals, value = word.partition("=")
    yield flag, value if equals else following
