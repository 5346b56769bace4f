"""Services get the numbers of a run, offline too, and none of them can end it."""

import contextlib
import json
import struct
import time

import pytest

from dinojax import errors
from dinojax.reporting import loggers, run_log
from experiments import vitg14

# First step, last step and exit code of each start of a run; one repeats a step.
STARTS = ((1, 3, 143), (3, 4, 1), (5, 5, 0))


def log_starts(workdir, name):
  """Logs a run to a service; yields where its starts have ended."""
  for first, last, code in STARTS:
    (logger,) = loggers.open_loggers(
      (name,), workdir, start_step=first - 1, config={"seed": {"a": 5}}
    )
    for step in range(first, last + 1):
      logger.write(step, {"loss": 1 / step})
    logger.close(code)
    yield


def open_log(workdir):
  """The log of a run without loggers."""
  return run_log.Log(
    str(workdir),
    start_step=0,
    total_steps=1,
    log_every=1,
    batch_size=1,
    alarm_window=1,
    nothing_learnt=1.0,
    workers=0,
    loggers=(),
  )


def exit_codes(path):
  """Those in a small file of wandb: a header, then records behind 7 bytes each."""
  from wandb.proto import wandb_internal_pb2

  data, position, found = path.read_bytes(), 7, []
  while position + 7 <= len(data):
    _, length, _ = struct.unpack_from("<IHB", data, position)  # checksum, length, kind
    body, position = data[position + 7 : position + 7 + length], position + 7 + length
    if position <= len(data):  # else it is being written
      record = wandb_internal_pb2.Record.FromString(body)
      found += [record.exit.exit_code] if record.HasField("exit") else []
  return found


def test_mlflow_has_numbers_config_and_how_each_start_of_a_run_ended(
  tmp_path, monkeypatch
):
  mlflow = pytest.importorskip("mlflow", reason="needs dinojax[mlflow]")
  pytest.importorskip("sqlalchemy", reason="needs dinojax[mlflow]")
  monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
  client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
  statuses = []
  for _ in log_starts(tmp_path, "mlflow"):
    (experiment,) = [x for x in client.search_experiments() if x.name == "dinojax"]
    (run,) = client.search_runs([experiment.experiment_id])
    statuses.append(run.info.status)
  assert statuses == ["KILLED", "FAILED", "FINISHED"]
  assert run.info.run_name == tmp_path.name
  history = client.get_metric_history(run.info.run_id, "loss")
  found = sorted((entry.step, entry.value) for entry in history)
  assert found == [(step, 1 / step) for step in (1, 2, 3, 3, 4, 5)]
  (config,) = (tmp_path / "mlflow_files").rglob("config.json")
  assert json.loads(config.read_text()) == {"seed": {"a": 5}}


def test_wandb_offline_has_the_exit_code_of_each_start_of_a_run(tmp_path, monkeypatch):
  pytest.importorskip("wandb", reason="needs dinojax[wandb]")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  files = {}
  for _ in log_starts(tmp_path, "wandb"):
    files |= dict.fromkeys((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
  number = (tmp_path / "wandb_id").read_text()
  assert [path.name for path in files] == [f"run-{number}.wandb"] * 3
  deadline = time.monotonic() + 30  # another process of wandb writes them
  while not all(map(exit_codes, files)) and time.monotonic() < deadline:
    time.sleep(0.1)
  assert [exit_codes(path) for path in files] == [[143], [1], [0]]


class Recording:
  """A logger that records its exit codes."""

  def __init__(self):
    self.codes = []

  def close(self, exit_code):
    self.codes.append(exit_code)


@pytest.mark.parametrize(
  ("error", "code"),
  [
    (None, 0),
    (errors.UserError("step 1: loss is nan"), 1),
    (errors.TemporaryError("the disk failed"), errors.TRY_AGAIN),
    (ValueError("a bug"), 1),
    (SystemExit(143), 143),
    (KeyboardInterrupt(), 130),
  ],
)
def test_loggers_get_the_exit_code_of_a_run(tmp_path, monkeypatch, error, code):
  logger = Recording()
  monkeypatch.setattr(loggers, "open_loggers", lambda *_, **__: [logger])
  with contextlib.suppress(type(error) if error else ()), open_log(tmp_path):
    if error:
      raise error
  assert logger.codes == [code]


def test_a_run_whose_last_event_cannot_be_written_has_failed(tmp_path, monkeypatch):
  logger = Recording()
  monkeypatch.setattr(loggers, "open_loggers", lambda *_, **__: [logger])
  log = open_log(tmp_path)
  monkeypatch.setattr(log, "_event", lambda *_, **__: 1 / 0)
  with pytest.raises(ZeroDivisionError), log:
    pass
  assert logger.codes == [1]


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

  def close(self, exit_code):
    raise AssertionError("closed after it failed")


def test_a_service_that_fails_is_left_out_with_one_warning(capsys):
  failing = Failing()
  logger = loggers._Service("wandb", lambda: failing)
  for step in range(5):
    logger.write(step, {"loss": 1.0})
  logger.sync()
  logger.close(0)
  assert failing.calls == 3
  (line,) = capsys.readouterr().err.splitlines()
  assert "wandb failed and is left out" in line
  assert "ConnectionError: the service is gone" in line


def test_a_service_that_cannot_be_reached_at_the_start_is_left_out(capsys):
  def open_logger():
    raise OSError("no route")

  logger = loggers._Service("mlflow", open_logger)
  logger.write(1, {"loss": 1.0})
  logger.close(0)
  assert capsys.readouterr().err.count("mlflow failed") == 1


def test_tensorboard_alone_is_the_default_and_none_writes_nothing_but_files(tmp_path):
  assert tuple(vitg14.get_config().loggers) == ("tensorboard",)
  log = open_log(tmp_path)
  log.write(1, {"loss": 1.0})
  log.close()
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {"metrics.jsonl", "events.jsonl"}
