"""Apache Beam's part: a function over many tasks, on any runner, and its end in order.

Without --runner, tasks run in processes of this machine (Beam's FnApiRunner), and
whatever ends this process ends those, too. Beam is imported where it is used: it is an
extra, and takes seconds.
"""

import contextlib
import functools
import logging
import os
import pathlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil
import tqdm

from dinojax import errors

LOCAL = (None, "DirectRunner", "FnApiRunner")
POLL = 0.5  # seconds between looks at progress, and at whether the parent is alive
Options = Any  # Beam's PipelineOptions


def parse(arguments: list[str]) -> Options:
  """Beam's options, several local processes by default; UserError if one is unknown."""
  try:
    from apache_beam.options import pipeline_options
  except ModuleNotFoundError as error:
    raise errors.UserError(
      f"ingest needs {error.name}: pip install -e '.[ingest]'"
    ) from error
  logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
  given = {argument.partition("=")[0] for argument in arguments}
  defaults = {
    "--direct_num_workers": str(os.cpu_count()),
    "--direct_running_mode": "multi_processing",
    # A task's error comes back to this process, which tells it once.
    "--default_sdk_harness_log_level": "CRITICAL",
  }
  defaults = [f"{name}={x}" for name, x in defaults.items() if name not in given]
  try:
    options = pipeline_options.PipelineOptions([*arguments, *defaults])
    known = options.get_all_options()
  except SystemExit as error:  # argparse's, which has printed the reason
    raise errors.UserError("an option of Beam's has a wrong value") from error
  unknown = options.get_all_options(retain_unknown_options=True).keys() - known.keys()
  if unknown:
    raise errors.UserError(
      f"--{min(unknown)} is an option neither of ingest (see --help) nor of Beam"
    )
  return options


def is_local(options: Options) -> bool:
  """Whether tasks run in processes of this machine."""
  return options.get_all_options()["runner"] in LOCAL


def within_this_process(options: Options) -> Options:
  """The options, but for no other process if tasks run on this machine."""
  if not is_local(options):
    return options
  changed = type(options).from_dictionary(options.get_all_options())
  changed.view_as(_direct_options()).direct_num_workers = 1
  changed.view_as(_direct_options()).direct_running_mode = "in_memory"
  return changed


def _direct_options() -> type:
  from apache_beam.options import pipeline_options

  return pipeline_options.DirectOptions


def each(
  function: Callable[[Any], None],
  tasks: list,
  *,
  options: Options,
  label: str,
  count: Callable[[], int],
) -> None:
  """Calls a function once for each task.

  Args:
    function: of one task; a partial of a module's function. Beam may call it again for
      the same task, and at once.
    tasks: anything that can be pickled.
    options: of `parse`.
    label: shown before the progress.
    count: the number of tasks done so far.

  Raises:
    UserError: that of a task.
  """
  import apache_beam as beam

  def build(pipeline):
    call = beam.FlatMap(_Call(function, _parent(options)))
    _ = pipeline | beam.Create(tasks) | beam.Reshuffle() | label >> call

  if tasks:
    _run(build, options, label, len(tasks), count)


def grouped(
  emit: Callable[[Any], Iterator[tuple[int, bytes]]],
  reduce: Callable[[int, Iterable[bytes]], None],
  tasks: list,
  *,
  options: Options,
  label: str,
  count: Callable[[], int],
) -> None:
  """Brings together what the tasks emit for the same key.

  Args:
    emit: a task -> pairs of a key and bytes.
    reduce: takes a key and all bytes of it, in no particular order.
    tasks: as in `each`, and so are `options`, `label` and `count`.
    options: of `parse`.
    label: shown before the progress.
    count: the number of tasks done so far.
  """
  import apache_beam as beam

  def build(pipeline):
    parent = _parent(options)
    _ = (
      pipeline
      | beam.Create(tasks)
      | beam.Reshuffle()
      | f"{label}: keys" >> beam.FlatMap(_Call(emit, parent))
      | beam.GroupByKey()
      | f"{label}: groups"
      >> beam.FlatMap(_Call(functools.partial(_apply, reduce), parent))
    )

  if tasks:
    _run(build, options, label, len(tasks), count)


def _apply(function: Callable, pair: tuple) -> None:
  function(*pair)


class _Call:
  """A function as Beam wants it, in a process that ends with its parent."""

  def __init__(self, function: Callable, parent: int | None):
    self._function = function
    self._parent = parent

  def __call__(self, element):
    if self._parent is not None:
      _die_with(self._parent)
    return self._function(element) or ()


@functools.cache
def _die_with(parent: int) -> None:
  """Ends this process when its parent is gone: Beam's would outlive a kill."""

  def wait():
    while psutil.pid_exists(parent):
      time.sleep(POLL)
    os._exit(1)

  if parent != os.getpid():
    threading.Thread(target=wait, daemon=True).start()


def _parent(options: Options) -> int | None:
  return os.getpid() if is_local(options) else None


def _run(build: Callable, options, label: str, total: int, count: Callable) -> None:
  """Builds and runs one pipeline, with a bar; a task's UserError is raised here."""
  import apache_beam as beam

  runner = _local_runner(options) if is_local(options) else None
  pipeline = beam.Pipeline(runner=runner, options=options)
  build(pipeline)
  try:
    with _progress(label, total, count), _no_orphans():
      pipeline.run().wait_until_finish()
  except Exception as error:
    # From another process the error comes as the text of its traceback.
    pattern = r"errors\.UserError: (.*?)(?: \[while running .*)?$"
    told = re.findall(pattern, str(error), re.MULTILINE)
    if isinstance(error, errors.UserError):
      told = [str(error).partition(" [while running ")[0]]
    if told:
      raise errors.UserError(told[-1]) from error
    raise


def _local_runner(options):
  """Beam's local runner; DirectRunner would first look for another on the network."""
  from apache_beam.portability.api import beam_provision_api_pb2
  from apache_beam.runners.portability import portable_runner
  from apache_beam.runners.portability.fn_api_runner import fn_runner

  values = portable_runner.JobServiceHandle.encode_pipeline_options(
    options.get_all_options()
  )
  information = beam_provision_api_pb2.ProvisionInfo(pipeline_options=values)
  return fn_runner.FnApiRunner(
    provision_info=fn_runner.ExtendedProvisionInfo(information)
  )


@contextlib.contextmanager
def _no_orphans() -> Iterator[None]:
  """Ends the processes that Beam has started, if anything is raised meanwhile."""
  before = set(psutil.Process().children(recursive=True))
  try:
    yield
  except BaseException:
    # The threads that wait for these processes would complain.
    threading.excepthook = lambda _: None
    for process in set(psutil.Process().children(recursive=True)) - before:
      with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    raise


@contextlib.contextmanager
def _progress(label: str, total: int, count: Callable[[], int]) -> Iterator[None]:
  """A bar on a terminal, and in the end a line anywhere."""
  begun, over = time.monotonic(), threading.Event()
  bar = tqdm.tqdm(desc=label, total=total, leave=False, disable=None, unit=" tasks")

  def watch():
    while not over.wait(POLL):
      bar.n = count()
      bar.refresh()

  if not bar.disable:
    threading.Thread(target=watch, daemon=True).start()
  try:
    yield
  finally:
    over.set()
    bar.close()
  say(f"{label}: {time.monotonic() - begun:.0f} s")


def say(line: str) -> None:
  """Prints one line without tearing the bar; unlike metrics.say, without JAX."""
  tqdm.tqdm.write(line, file=sys.stderr)


def files_in(folder: pathlib.Path) -> Callable[[], int]:
  """Counts the files of a folder, as the number of tasks done."""
  return lambda: sum(1 for _ in folder.iterdir()) if folder.exists() else 0
