"""Loggers of a run beside metrics.jsonl, by config.loggers.

"tensorboard" writes events; "wandb" (Weights & Biases) and "mlflow" are of services.
A logger has write(step, scalars), write_images(step, images), which services leave out,
sync() and close(exit_code), by whose code services show how the run has ended: see
`errors`. A service that fails does not end a run: it is left out with a warning, and
metrics.jsonl has all.
"""

import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinojax import errors
from dinojax.reporting import console

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


def check(names: Sequence[str]) -> None:
  """Raises UserError if one of config.loggers is unknown, or is not installed."""
  for name in names:
    if name not in PACKAGES:
      raise errors.UserError(
        f"config.loggers={tuple(names)}: {name!r} must be one of {', '.join(PACKAGES)};"
        " give --config.loggers once for each, and '()' for none"
      )
    if importlib.util.find_spec(PACKAGES[name]) is None:
      raise errors.UserError(
        f"config.loggers={tuple(names)}: {name} is not installed; run pip install"
        f" 'dinojax[{name}]', or from a clone pip install -e '.[{name}]'"
      )


def open_loggers(
  names: Sequence[str], workdir: pathlib.Path, *, start_step: int | None, config: Any
) -> list:
  """Opens the loggers of a run.

  Args:
    names: config.loggers; `check` has seen that their packages are there.
    workdir: of the run.
    start_step: completed updates; None: results are added to those of a run.
    config: dict of the run's config, for services; None if it is not known.
  """
  opened = []
  if "tensorboard" in names:
    from dinojax.reporting import tensorboard

    opened.append(tensorboard.Logger(workdir / "tensorboard", start_step=start_step))
  if "wandb" in names:
    from dinojax.reporting import wandb_run

    opened.append(_Service("wandb", lambda: wandb_run.Logger(workdir, config)))
  if "mlflow" in names:
    from dinojax.reporting import mlflow_run

    opened.append(_Service("mlflow", lambda: mlflow_run.Logger(workdir, config)))
  return opened


class _Service:
  """A logger whose first failure is reported, and the last that is heard of it."""

  def __init__(self, name: str, open_logger):
    self._name, self._logger = name, None
    self._call(lambda: setattr(self, "_logger", open_logger()))

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Sends the scalars of a step."""
    if self._logger:
      self._call(lambda: self._logger.write(step, scalars))

  def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
    """Does nothing: pictures are TensorBoard's."""

  def sync(self) -> None:
    """Does nothing: services send when they can."""

  def close(self, exit_code: int) -> None:
    """Ends the service's run: 0 done, 128 + n ended by signal n, else failed."""
    if self._logger:
      self._call(lambda: self._logger.close(exit_code))

  def _call(self, function) -> None:
    try:
      function()
    except Exception as error:  # of libraries that promise no kinds of their own
      self._logger = None
      reason = " ".join(str(error).split())[:300]
      console.say(
        f"warning: config.loggers: {self._name} failed and is left out from here on"
        f" ({type(error).__name__}: {reason}); metrics.jsonl has all"
      )
