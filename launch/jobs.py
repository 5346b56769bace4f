"""Training job for a cluster: what a person asks for, checked and completed.

Nothing here depends on Kubernetes' API or asks a cluster: a user error is one line,
before anything is submitted.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dinojax import errors, preflight
from launch import accelerators, buckets

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Pods are named NAME-train-SLICE-HOST-xxxxx, in at most 63 characters.
LONGEST_NAME = 40
# The daemon of GPUDirect-TCPXO that goes with plugin v1.0.17, the first for CUDA 13.
TCPXO_DAEMON = "v1.0.23"
# Their values must not stand in a manifest, which many people may read.
SECRET = re.compile("TOKEN|KEY|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One run on a cluster."""

  name: str
  image: str
  accelerator: accelerators.Accelerator
  command: tuple[str, ...]  # of every process, without its number
  slices: int = 1
  mounts: tuple[buckets.Mount, ...] = ()
  env: Mapping[str, str] = dataclasses.field(default_factory=dict)
  secret_env: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
  namespace: str = "default"
  service_account: str = "default"
  queue: str = ""  # of Kueue; "": none
  spot: bool = False
  node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict)
  exclusive_topology: bool = True
  max_restarts: int = 10  # after errors; preemptions don't count
  grace_seconds: int = 600  # between SIGTERM and SIGKILL, to save in
  gpudirect: bool = True  # where several hosts have it
  tcpxo_daemon: str = TCPXO_DAEMON


def make(
  config,
  *,
  config_file: str,
  overrides: Mapping[str, Any],
  accelerator: str,
  image: str,
  workdir: str,
  name: str = "",
  slices: int = 1,
  env: Mapping[str, str] | None = None,
  **options,
) -> Job:
  """The job that trains a config; UserError for what cannot work.

  Args:
    config: the ConfigDict of an experiment, with `overrides` in it.
    config_file: where it was read from, within the project.
    overrides: {dotted path: value} of what differs from the file.
    accelerator: a name of accelerators.py.
    image: a container image that the cluster can pull.
    workdir: gs://BUCKET/PATH.
    name: of the job; "": by experiment and accelerator.
    slices: how many of the accelerator; 1 for GPUs.
    env: environment variables; gs:// in them is mounted.
    **options: further fields of Job.
  """
  chips = accelerators.find(accelerator)
  check_slices(chips, slices)
  if not image:
    raise errors.UserError(
      "--image=REGISTRY/IMAGE:TAG is missing; launch/README.md shows how to build it"
    )
  path, own = mount_workdir(workdir)
  preflight.check(config, devices=chips.chips * slices)
  preflight.mesh_shape(
    **config.mesh,
    devices=chips.chips * slices,
    slices=slices,
    gpus_per_host=0 if chips.is_tpu else chips.chips_per_host,
  )

  fields, mounts = buckets.mount_config({**config.to_dict(), "workdir": path})
  values = {**overrides, **fields, "workdir": path}
  env = dict(env or {})
  for variable, value in env.items():
    if SECRET.search(variable):
      raise errors.UserError(
        f"--env={variable}=... looks like a secret, and everybody who may see the job"
        f" would read it; give --secret_env={variable}=SECRET:KEY"
      )
    env[variable], found = buckets.mount(
      value, field=f"--env={variable}", read_only=True
    )
    mounts |= found
  return Job(
    name=valid_name(name or _default_name(config_file, chips, slices)),
    image=image,
    accelerator=chips,
    slices=slices,
    command=(
      *("python", "-m", "dinojax.main"),
      f"--config={within_project(config_file)}",
      *(f"--config.{field}={value}" for field, value in values.items()),
    ),
    mounts=tuple(sorted({own, *mounts})),
    env=env,
    **options,
  )


def _default_name(
  config_file: str, chips: accelerators.Accelerator, slices: int
) -> str:
  experiment = pathlib.Path(config_file.partition(":")[0]).stem
  return f"{experiment}-{f'{slices}x' if slices > 1 else ''}{chips.name}"


def check_slices(chips: accelerators.Accelerator, slices: int) -> None:
  """Raises UserError for a number of slices that cannot be."""
  if slices < 1:
    raise errors.UserError(f"--slices={slices} must be at least 1")
  if slices > 1 and not chips.is_tpu:
    family = chips.name.rpartition("-")[0]
    raise errors.UserError(
      f"--slices={slices} is for TPUs; for more GPUs: --accelerator={family}"
      f"-{chips.chips * slices}"
    )
  if slices > 1 and chips.hosts == 1:
    raise errors.UserError(
      f"--slices={slices} of {chips.name}: slices of one host cannot be joined; take"
      " one larger slice"
    )


def mount_workdir(workdir: str) -> tuple[str, buckets.Mount]:
  """The workdir's path in the pods and its bucket; UserError if it is no bucket's."""
  if not workdir:
    raise errors.UserError("--workdir=gs://BUCKET/PATH is missing")
  if not workdir.startswith("gs://"):
    raise errors.UserError(
      f"--workdir={workdir} is a local path, which pods don't share and which ends with"
      " them; give gs://BUCKET/PATH"
    )
  if not workdir.removeprefix("gs://").strip("/"):
    raise errors.UserError(f"--workdir={workdir} names no bucket; gs://BUCKET/PATH")
  path, mounts = buckets.mount(workdir.rstrip("/"), field="--workdir", read_only=False)
  own = mounts.pop()
  if path == own.path:
    raise errors.UserError(
      f"--workdir={workdir} is a whole bucket; give a folder of it for each run:"
      f" gs://{own.bucket}/PATH"
    )
  return path, own


def within_project(config_file: str) -> str:
  """The path of a config file from the project's root, where images have it, too."""
  path, colon, argument = config_file.partition(":")
  relative = os.path.relpath(os.path.abspath(path), ROOT)
  if relative.startswith(os.pardir):
    raise errors.UserError(
      f"--config={config_file} is outside of {ROOT}, and so in no image of it; put it"
      " into experiments/ and build the image again"
    )
  return f"{relative}{colon}{argument}"


def valid_name(text: str) -> str:
  """A name that Kubernetes takes, the same for the same text; itself if it is valid."""
  name = re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")
  if not name[:1].isalpha():
    name = f"run-{name}".rstrip("-")
  if len(name) > LONGEST_NAME:
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    name = f"{name[: LONGEST_NAME - 7].rstrip('-')}-{digest}"
  return name


def pairs(texts: Sequence[str], *, flag: str, form: str) -> dict[str, str]:
  """{NAME: VALUE} of "NAME=VALUE" texts; UserError, with `form`, if one is not."""
  found = {}
  for text in texts:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
      raise errors.UserError(f"--{flag}={text} must be {form}")
    found[name] = value
  return found


def secrets(texts: Sequence[str]) -> dict[str, tuple[str, str]]:
  """{VARIABLE: (secret, key)} of "VARIABLE=SECRET:KEY" texts."""
  form = "NAME=SECRET:KEY, a key of a Kubernetes secret, and not the value itself"
  found = {}
  for name, value in pairs(texts, flag="secret_env", form=form).items():
    match = re.fullmatch(r"([a-z0-9][a-z0-9.-]*):([A-Za-z0-9._-]+)", value)
    if not match:
      raise errors.UserError(f"--secret_env={name}=... must be {form}")
    found[name] = match.groups()
  return found
