"""Services get the numbers of a run, offline too, and none of them can end it."""

import json

import pytest

from dinojax import errors
from dinojax.reporting import loggers, run_log
from experiments import vitg14


def log_two_starts(workdir, name):
  """Steps 1 to 3, and 3 to 4 of a run that resumes at step 2."""
  for steps in ((1, 2, 3), (3, 4)):
    (logger,) = loggers.open_loggers(
      (name,), workdir, start_step=steps[0] - 1, config={"seed": {"a": 5}}
    )
    for step in steps:
      logger.write(step, {"loss": 1 / step})
    logger.close()


def test_mlflow_has_each_number_config_and_one_run_after_a_restart(
  tmp_path, monkeypatch
):
  mlflow = pytest.importorskip("mlflow", reason="needs dinojax[mlflow]")
  pytest.importorskip("sqlalchemy", reason="needs dinojax[mlflow]")
  monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
  log_two_starts(tmp_path, "mlflow")
  client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
  (experiment,) = [x for x in client.search_experiments() if x.name == "dinojax"]
  (run,) = client.search_runs([experiment.experiment_id])
  assert (run.info.status, run.info.run_name) == ("FINISHED", tmp_path.name)
  history = client.get_metric_history(run.info.run_id, "loss")
  found = sorted((entry.step, entry.value) for entry in history)
  assert found == [(step, 1 / step) for step in (1, 2, 3, 3, 4)]
  (config,) = (tmp_path / "mlflow_files").rglob("config.json")
  assert json.loads(config.read_text()) == {"seed": {"a": 5}}


def test_wandb_offline_leaves_files_of_one_run_after_a_restart(tmp_path, monkeypatch):
  pytest.importorskip("wandb", reason="needs dinojax[wandb]")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  log_two_starts(tmp_path, "wandb")
  number = (tmp_path / "wandb_id").read_text()
  found = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
  assert [path.name for path in found] == [f"run-{number}.wandb"] * 2


def test_a_logger_that_is_unknown_or_not_installed_is_refused_with_the_way_out(
  monkeypatch,
):
  with pytest.raises(errors.UserError, match="'tensorbord' must be one of tensorboard"):
    loggers.check(("tensorbord",))
  monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(errors.UserError, match=r"pip install 'dinojax\[wandb\]'"):
    loggers.check(("wandb",))
  loggers.check(())


class Failing:
  """A logger that fails at its third call."""

  calls = 0

  def write(self, step, scalars):
    self.calls += 1
    if self.calls > 2:
      raise ConnectionError("the service\nis gone")

  def close(self):
    raise AssertionError("closed after it failed")


def test_a_service_that_fails_is_left_out_with_one_warning(capsys):
  failing = Failing()
  logger = loggers._Service("wandb", lambda: failing)
  for step in range(5):
    logger.write(step, {"loss": 1.0})
  logger.sync()
  logger.close()
  assert failing.calls == 3
  (line,) = capsys.readouterr().err.splitlines()
  assert "wandb failed and is left out" in line
  assert "ConnectionError: the service is gone" in line


def test_a_service_that_cannot_be_reached_at_the_start_is_left_out(capsys):
  def open_logger():
    raise OSError("no route")

  logger = loggers._Service("mlflow", open_logger)
  logger.write(1, {"loss": 1.0})
  logger.close()
  assert capsys.readouterr().err.count("mlflow failed") == 1


def test_tensorboard_alone_is_the_default_and_none_writes_nothing_but_files(tmp_path):
  assert tuple(vitg14.get_config().loggers) == ("tensorboard",)
  log = run_log.Log(
    str(tmp_path),
    start_step=0,
    total_steps=1,
    log_every=1,
    batch_size=1,
    alarm_window=1,
    nothing_learnt=1.0,
    workers=0,
    loggers=(),
  )
  log.write(1, {"loss": 1.0})
  log.close()
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {"metrics.jsonl", "events.jsonl"}
