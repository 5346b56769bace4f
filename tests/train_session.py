"""A process with one device that trains one config after the other.

It imports JAX once for all of them, and their programs are in one cache.
"""

import ast
import contextlib
import importlib.util
import io
import json
import logging
import pathlib
import subprocess
import sys
import traceback
from typing import NamedTuple

import children
from absl import flags

ROOT = pathlib.Path(__file__).parent.parent


class Ended(NamedTuple):
  """How a training ended: its status as of the command, and what it printed."""

  status: int
  output: str


class Session:
  """Trains configs in one process."""

  def __init__(self):
    """Starts the process."""
    self._process = subprocess.Popen(
      [sys.executable, __file__],
      **dict(cwd=ROOT, env=children.environment(1)),
      **dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True),
    )

  def train(self, *settings, config="experiments/quickstart.py"):
    """Trains a config, whose fields are changed by "name=value", to its end."""
    print(json.dumps([str(config), settings]), file=self._process.stdin, flush=True)
    return Ended(*json.loads(self._process.stdout.readline()))

  def close(self):
    """Ends the process."""
    self._process.communicate()


def value(text):
  """The value of a field, as of a flag: a string needs no quotes."""
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def load(path, settings):
  """The config of a file, changed."""
  spec = importlib.util.spec_from_file_location("experiment", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  changes = dict(setting.split("=", 1) for setting in settings)
  with config.unlocked():
    config.update_from_flattened_dict({k: value(x) for k, x in changes.items()})
  return config


def main():
  """Trains what comes from standard input, and answers there on standard output."""
  from dinojax import errors, main  # here: tests import this file for its class

  flags.FLAGS.mark_as_parsed()
  for line in sys.stdin:
    status, output = 0, io.StringIO()
    logging.getLogger().handlers = [logging.StreamHandler(output)]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
      try:
        main.train(load(*json.loads(line)))
      except errors.UserError as error:
        status = error.status
        print(f"dinojax: {error}")
      except Exception:
        status = 1
        traceback.print_exc(file=output)
    print(json.dumps([status, output.getvalue()]), flush=True)


if __name__ == "__main__":
  main()
