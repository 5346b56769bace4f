"""Scalars to Weights & Biases, by its own client.

WANDB_PROJECT, WANDB_MODE=offline and its other variables hold as everywhere. Files go
to WORKDIR/wandb; a run that resumes is the same run there, by WORKDIR/wandb_id.
"""

import os
import pathlib
import uuid

import wandb

from dinojax import durable


class Logger:
  """One run of the service."""

  def __init__(self, workdir: pathlib.Path, config: dict | None):
    """Starts the run, or resumes it. config: of the run, shown there."""
    path = workdir / "wandb_id"
    if not path.exists():
      with durable.atomic_write(path, out=path) as file:
        file.write(uuid.uuid4().hex.encode())
    self._run = wandb.init(
      project=os.environ.get("WANDB_PROJECT") or "dinojax",
      name=workdir.resolve().name,
      id=path.read_text(),
      resume="allow",
      dir=workdir,
      config=config,
      settings=wandb.Settings(console="off"),  # the progress bar stays its own
    )
    # Steps of its own only rise, and a run that resumes repeats some.
    self._run.define_metric("step")
    self._run.define_metric("*", step_metric="step")

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Takes the scalars of a step; sent in the background."""
    self._run.log({"step": step, **scalars})

  def close(self, exit_code: int) -> None:
    """Returns when all is sent, or in files for `wandb sync`."""
    self._run.finish(exit_code)
