"""Scalars to MLflow, by its own client.

MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME hold as everywhere; without the former
all goes to the SQLite file WORKDIR/mlflow.db. A run that resumes is the same run there,
by WORKDIR/mlflow_id.
"""

import os
import pathlib

import mlflow

from dinojax import durable

SIGNAL = 128  # exit codes above are 128 + a signal's number


class Logger:
  """One run of the service."""

  def __init__(self, workdir: pathlib.Path, config: dict | None):
    """Starts the run, or resumes it. config: of the run, kept as an artifact."""
    workdir = workdir.resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workdir}/mlflow.db"
    self._client = mlflow.MlflowClient(tracking_uri=uri)
    path = workdir / "mlflow_id"
    if path.exists():
      self._id = path.read_text()
      self._client.update_run(self._id, status="RUNNING")
      return
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "dinojax"
    found = self._client.get_experiment_by_name(experiment)
    number = found.experiment_id if found else self._new_experiment(experiment, workdir)
    self._id = self._client.create_run(number, run_name=workdir.name).info.run_id
    with durable.atomic_write(path, out=path) as file:
      file.write(self._id.encode())
    if config:
      self._client.log_dict(self._id, config, "config.json")

  def _new_experiment(self, name, workdir):
    mine = None if os.environ.get("MLFLOW_TRACKING_URI") else f"{workdir}/mlflow_files"
    return self._client.create_experiment(name, artifact_location=mine)

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Sends the scalars of a step."""
    now = mlflow.utils.time.get_current_time_millis()
    entries = [mlflow.entities.Metric(k, v, now, step) for k, v in scalars.items()]
    self._client.log_batch(self._id, metrics=entries)

  def close(self, exit_code: int) -> None:
    """Marks the run as finished, failed, or killed by a signal."""
    status = "FAILED" if exit_code else "FINISHED"
    if exit_code > SIGNAL:
      status = "KILLED"
    self._client.set_terminated(self._id, status=status)
