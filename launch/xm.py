r"""Trains under XManager, on this machine or on a GKE cluster: one run, or a sweep.

  xmanager launch launch/xm.py -- --config=experiments/quickstart.py \
    --sweep=config.seed=0,1
  xmanager launch launch/xm.py -- --config=experiments/vitg14.py --platform=gke \
    --accelerator=v5p-128 --image=REGISTRY/dinojax:TAG --workdir=gs://BUCKET/vitg14

Takes the flags of gke.py. --sweep may be given several times, for every combination;
each is a work unit, and has the folder FIELD=VALUE of the workdir to itself. Here they
run one after the other, in processes of this Python, without Docker; on a cluster each
is a JobSet, NAME-1, NAME-2 and so on, for python launch/gke.py status, logs and stop.
--dry_run prints instead. The same command again resumes every run.
"""

import asyncio
import os
import pathlib
import shlex
import sys
import traceback

if __name__ == "xm":  # as XManager's command imports this file, by its folder
  sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))
  from dinojax.runtime import signals

  signals.end_at_once()

from absl import flags, logging
from ml_collections import config_flags
from xmanager import xm, xm_local
from xmanager.xm import job_operators
from xmanager.xm_local import executables, registry

from dinojax import errors
from dinojax.commands import mistakes, parsing
from dinojax.runtime import signals
from launch import gke, jobs, jobset, sweeps

PLATFORM = flags.DEFINE_enum("platform", "local", ["local", "gke"], "Where to train.")
SWEEP = flags.DEFINE_multi_string(
  "sweep", [], "config.FIELD=VALUE,VALUE,...: a run for each value."
)
COMMAND = ["xmanager", *sys.argv[1:]]  # before XManager changes it


class JobSets(xm.Executor):
  """A GKE cluster, which runs a manifest without this process."""

  Spec = xm_local.KubernetesSpec

  def __init__(self, cluster, manifest: dict):
    """Takes a `cluster.Cluster` and what to create there."""
    self.cluster, self.manifest = cluster, manifest

  @classmethod
  async def launch(cls, local_experiment_unit, job_group: xm.JobGroup) -> list:
    """Creates the JobSets of a work unit. There is nothing to wait for: no handles."""
    del local_experiment_unit
    for job in job_operators.flatten_jobs(job_group):
      job.executor.cluster.submit(job.executor.manifest)
    return []


registry.register(JobSets, JobSets.launch)


def load(overrides: dict) -> tuple:
  """The experiment's config with these overrides, and them as the config's types."""
  config_file = config_flags.get_config_filename(flags.FLAGS["config"])
  argv = ["", f"--config={config_file}", *_options(overrides)]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
  parsing.find_experiments(argv)
  with mistakes.explained():
    values(argv)
    return values.config, config_flags.get_override_values(values["config"])


def local_command(run: sweeps.Run) -> list[str]:
  """The command that trains a run on this machine."""
  given = config_flags.get_override_values(flags.FLAGS["config"])
  overrides = {**given, **run.overrides}
  config, _ = load(overrides)
  workdir = pathlib.Path(config.workdir, run.folder)
  config_file = config_flags.get_config_filename(flags.FLAGS["config"])
  options = _options({**overrides, "workdir": workdir})
  return [sys.executable, "-m", "dinojax.main", f"--config={config_file}", *options]


def _options(overrides: dict) -> list[str]:
  return [f"--config.{field}={value}" for field, value in overrides.items()]


async def train_here(runs: list[sweeps.Run], commands: list[list[str]]) -> None:
  """Runs one after the other; UserError at the end if some failed."""
  failed = []
  path = filter(None, (str(jobs.ROOT), os.environ.get("PYTHONPATH")))
  os.environ["PYTHONPATH"] = os.pathsep.join(path)  # for this command from elsewhere
  async with xm_local.create_experiment(title()) as experiment:
    # XManager starts and ends a shell, which the command is to replace.
    executable = executables.LocalBinary("dinojax", "exec")
    for run, command in zip(runs, commands, strict=True):
      # The output is the terminal's own, with its progress bar.
      executor = xm_local.Local(experimental_stream_output=False)
      job = xm.Job(executable, executor, args=command)
      unit = await experiment.add(job)
      print(f"work unit {unit.work_unit_id}: {shlex.join(command)}")
      try:
        await unit.wait_until_complete()
      except xm.ExperimentUnitError as error:
        failed.append(f"work unit {unit.work_unit_id} {run.folder} ({error})")
    if failed:
      raise errors.UserError(f"failed: {'; '.join(failed)}")


async def train_there(cluster, named_jobs: list[jobs.Job]) -> None:
  """Submits all runs to a `cluster.Cluster`."""
  async with xm_local.create_experiment(title()) as experiment:
    for job in named_jobs:
      executable = executables.GoogleContainerRegistryImage("dinojax", job.image)
      executor = JobSets(cluster, jobset.render(job))
      unit = await experiment.add(xm.Job(executable, executor, args=job.command[3:]))
      print(f"work unit {unit.work_unit_id}: {job.name} is submitted")


def title() -> str:
  """Of the experiment, among XManager's."""
  config_file = config_flags.get_config_filename(flags.FLAGS["config"])
  return f"dinojax {pathlib.Path(config_file).stem}"


def main(_) -> None:
  """Checks all runs, and then starts them."""
  signals.end_in_order()
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  if flags.FLAGS["config"].value is None:
    raise errors.UserError("--config=FILE is missing; try experiments/quickstart.py")
  runs = sweeps.runs(SWEEP.value)
  with mistakes.explained():
    _ = flags.FLAGS.config.workdir  # a file that cannot be loaded shows only now
  if PLATFORM.value == "local":
    for flag in flags.FLAGS.get_flags_for_module("launch.gke"):
      if flag.present and flag.name not in ("config", "dry_run"):
        instead = "; give --config.workdir" if flag.name == "workdir" else ""
        raise errors.UserError(f"--{flag.name} is for --platform=gke{instead}")
    commands = [local_command(run) for run in runs]
    if gke.DRY_RUN.value:
      print("\n".join(map(shlex.join, commands)), flush=True)
      gke.print_next(COMMAND)
    else:
      asyncio.run(train_here(runs, commands))
    return
  made = [make_job(run, number, len(runs)) for number, run in enumerate(runs, 1)]
  cluster = None if gke.DRY_RUN.value else gke.open_cluster()
  gke.print_notes(made[0], flags.FLAGS.config)
  if cluster is None:
    manifests = [jobset.to_yaml(jobset.render(job)) for job in made]
    print("---\n".join(manifests), end="", flush=True)
    gke.print_next(COMMAND)
  else:
    asyncio.run(train_there(cluster, made))


def make_job(run: sweeps.Run, number: int, count: int) -> jobs.Job:
  """A run's job; of several, with its number in the name and a folder of its own."""
  given = config_flags.get_override_values(flags.FLAGS["config"])
  config, overrides = load({**given, **run.overrides})
  alone = gke.make_job(config, overrides)
  if count == 1:
    return alone
  return gke.make_job(
    config,
    overrides,
    name=f"{alone.name}-{number}",
    workdir=f"{gke.WORKDIR.value.rstrip('/')}/{run.folder}",
  )


def report(kind, error, trace) -> None:
  """Prints a user error in one line, where XManager's command prints a traceback."""
  files = [frame.filename for frame in traceback.extract_tb(trace)]
  try:
    # Overrides of fields that do not exist come up while XManager parses the flags.
    if any("ml_collections" in file for file in files):
      with mistakes.explained():
        raise error
  except errors.UserError as explained:
    error = explained
  except Exception:
    pass
  if status := signals.status():
    print("dinojax: interrupted; what runs here saves and ends", file=sys.stderr)
    sys.stdout.flush()
    os._exit(status)  # a hook cannot choose Python's status
  if isinstance(error, errors.UserError):
    print(f"dinojax: {errors.printable(str(error))}", file=sys.stderr)
  else:
    sys.__excepthook__(kind, error, trace)


def describe() -> str:
  """What --help prints: XManager's own does not know the script that it launches."""
  modules = [sys.modules[__name__], gke]
  return "\n".join([__doc__, *map(flags.FLAGS.module_help, modules)])


sys.excepthook = report
if {"-h", "-help", "--help", "--helpshort", "--helpfull"} & set(sys.argv):
  print(describe())
  sys.exit()
parsing.find_experiments(sys.argv)
