"""Apache Beam pipelines: a function over many tasks, on any runner.

Without --runner, tasks run in processes of this machine (Beam's FnApiRunner), which end
together with this one. Beam is imported where it is used: it is an extra, and its
import takes seconds.
"""

import contextlib
import dataclasses
import difflib
import functools
import logging
import os
import pathlib
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tqdm

from dinojax import errors
from dinojax.curation import failures, worker

LOCAL = (None, "DirectRunner", "FnApiRunner")


def parse_options(arguments: list[str], own: list[str]) -> list[str]:
  """Beam's options, checked; by default several processes of this machine.

  Args:
    arguments: all that are no flags of the command.
    own: names of the command's flags, one of which may be meant by an unknown option.

  Raises:
    UserError: one is unknown, or Beam is not installed.
  """
  given = {argument.partition("=")[0] for argument in arguments}
  defaults = {
    "--direct_num_workers": str(os.cpu_count()),
    "--direct_running_mode": "multi_processing",
  }
  defaults = [f"{name}={x}" for name, x in defaults.items() if name not in given]
  logging.disable(logging.WARNING)  # Beam warns of packages that it does not find
  try:
    built = _pipeline_options([*arguments, *defaults])
    known = built.get_all_options()
  except ModuleNotFoundError as error:
    raise errors.UserError(
      f"ingest needs {error.name}: pip install -e '.[ingest]'"
    ) from error
  except SystemExit as error:  # argparse's, which has printed the reason
    raise errors.UserError("an option of Beam's has a wrong value") from error
  finally:
    logging.disable(logging.NOTSET)
  logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
  unknown = built.get_all_options(retain_unknown_options=True).keys() - known.keys()
  if unknown:
    name = min(unknown)
    close = difflib.get_close_matches(name, [*own, *known], n=1)
    raise errors.UserError(
      f"--{name} is an option neither of ingest (see --help) nor of Beam"
      + "".join(f"; did you mean --{meant}?" for meant in close)
    )
  return [*arguments, *defaults]


def in_this_process(options: list[str]) -> list[str]:
  """The options, but without other processes if tasks run on this machine."""
  return [*options, "--direct_num_workers=1", "--direct_running_mode=in_memory"]


def _pipeline_options(options: list[str]) -> Any:
  from apache_beam.options import pipeline_options

  return pipeline_options.PipelineOptions(options)


def run_tasks(
  function: Callable[[Any], None],
  tasks: list,
  *,
  options: list[str],
  label: str,
  count_done: Callable[[], int],
) -> None:
  """Calls a function once for each task.

  Args:
    function: of one task; a partial of a module's function. Beam may call it again for
      the same task, even at the same time.
    tasks: anything that can be pickled.
    options: of `parse_options`.
    label: shown before the progress.
    count_done: returns the number of tasks done so far.

  Raises:
    UserError: that of a task.
  """
  import apache_beam as beam

  def build(pipeline, address):
    report = functools.partial(failures.reporting, address, _NoElements(function))
    _ = pipeline | beam.Create(tasks) | beam.Reshuffle() | label >> beam.FlatMap(report)

  if tasks:
    _run_pipeline(build, options, label, len(tasks), count_done)


def run_grouped(
  emit: Callable[[Any], Iterator[tuple[int, bytes]]],
  reduce: Callable[[int, Iterable[bytes]], None],
  tasks: list,
  *,
  options: list[str],
  label: str,
  count_done: Callable[[], int],
) -> None:
  """Groups by key what tasks emit, and calls a function once for each key.

  Args:
    emit: a task -> pairs of a key and bytes.
    reduce: takes a key and all of its bytes, in no particular order.
    tasks: as in `run_tasks`, and so are the others.
    options: of `parse_options`.
    label: shown before the progress.
    count_done: returns the number of keys done so far.
  """
  import apache_beam as beam

  def build(pipeline, address):
    report = functools.partial(failures.reporting, address)
    _ = (
      pipeline
      | beam.Create(tasks)
      | beam.Reshuffle()
      | f"{label}: keys" >> beam.FlatMap(functools.partial(report, _List(emit)))
      | beam.GroupByKey()
      | f"{label}: groups" >> beam.FlatMap(functools.partial(report, _OfPair(reduce)))
    )

  if tasks:
    _run_pipeline(build, options, label, len(tasks), count_done)


@dataclasses.dataclass(frozen=True)
class _NoElements:
  """A function as Beam wants it: the elements that it returns are none."""

  function: Callable

  def __call__(self, task: Any) -> tuple:
    self.function(task)
    return ()


@dataclasses.dataclass(frozen=True)
class _List:
  """A generator that runs within the call, so that its failures are raised there."""

  function: Callable

  def __call__(self, task: Any) -> list:
    return list(self.function(task))


@dataclasses.dataclass(frozen=True)
class _OfPair:
  """A function of a key and its values, which Beam passes as one pair."""

  function: Callable

  def __call__(self, pair: tuple) -> tuple:
    self.function(*pair)
    return ()


def _run_pipeline(
  build: Callable, options: list[str], label: str, total: int, count_done: Callable
) -> None:
  """Builds and runs one pipeline, with a bar; raises a task's UserError."""
  import apache_beam as beam

  begun, done_before = time.monotonic(), count_done()
  bar = tqdm.tqdm(desc=label, total=total, leave=False, disable=None, unit=" tasks")

  def show_progress():
    if not bar.disable:
      bar.n = count_done() - done_before
      bar.refresh()

  runner, address, receiver = None, None, failures.Receiver()
  if _pipeline_options(options).get_all_options()["runner"] in LOCAL:
    runner, options = _local_runner(options)
    address = receiver.address
  pipeline = beam.Pipeline(runner=runner, options=_pipeline_options(options))
  build(pipeline, address)
  try:
    with contextlib.closing(receiver), contextlib.closing(bar):
      failures.run_until_failure(
        lambda: pipeline.run().wait_until_finish(), receiver, show_progress
      )
  except errors.UserError:
    raise
  except Exception as error:
    # From another machine the error comes as the text of its traceback.
    pattern = r"errors\.(User|Temporary)Error: (.*?)(?: \[while running .*)?$"
    if found := re.findall(pattern, str(error), re.MULTILINE):
      kind, message = found[-1]
      raise failures.KINDS[kind.lower()](message) from error
    raise
  log(f"{label}: {time.monotonic() - begun:.0f} s")


def _local_runner(options: list[str]) -> tuple[Any, list[str]]:
  """Beam's local runner, with our worker processes, and the options for it.

  DirectRunner itself would first look for another runner on the network.
  """
  from apache_beam.portability.api import beam_provision_api_pb2
  from apache_beam.runners.portability import portable_runner
  from apache_beam.runners.portability.fn_api_runner import fn_runner
  from apache_beam.transforms import environments

  environment = None
  known = _pipeline_options(options).get_all_options()
  if known["direct_running_mode"] == "multi_processing":
    command = [sys.executable, "-m", worker.__name__, str(os.getpid())]
    environment = environments.SubprocessSDKEnvironment.from_command_string(
      shlex.join(command)
    )
    # Otherwise it would take Beam's own command.
    options = [*options, "--direct_running_mode=in_memory"]
  values = portable_runner.JobServiceHandle.encode_pipeline_options(known)
  information = beam_provision_api_pb2.ProvisionInfo(pipeline_options=values)
  runner = fn_runner.FnApiRunner(
    default_environment=environment,
    provision_info=fn_runner.ExtendedProvisionInfo(information),
  )
  return runner, options


def log(line: str) -> None:
  """Prints one line without tearing the bar; unlike console.say, without JAX."""
  tqdm.tqdm.write(errors.printable(line), file=sys.stderr)


def file_counter(folder: pathlib.Path) -> Callable[[], int]:
  """Returns what counts the files of a folder, one for each task that is done."""
  return lambda: sum(1 for _ in folder.iterdir()) if folder.exists() else 0
