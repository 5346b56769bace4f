"""The log of a run has its numbers, its events, and how it has ended."""

import json
import logging
import math
import time

import jax.numpy as jnp
import pytest

from dinojax import errors
from dinojax.reporting import run_log


def lines(workdir, name="metrics.jsonl"):
  return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_scalar_that_is_not_finite_is_named(bad):
  assert run_log.first_non_finite({"a": 1.0, "b": bad, "c": math.nan}) == "b"
  assert run_log.first_non_finite({"a": 1e38, "b": -0.0}) is None


def open_log(workdir, log_every=2, alarm_window=100, about=(), page=None):
  return run_log.Log(
    str(workdir),
    start_step=0,
    total_steps=8,
    log_every=log_every,
    batch_size=4,
    alarm_window=alarm_window,
    nothing_learnt=1.0,
    workers=2,
    loggers=(),
    about=dict(about),
    page=page,
  )


def scalars(step, **changes):
  values = {"loss_dino": 1.0 * step, "loss_ibot": 2.0, "loss": 3.0} | changes
  return {name: jnp.float32(value) for name, value in values.items()}


def test_every_nth_step_is_logged_with_its_own_values_and_the_rates(tmp_path):
  log = open_log(tmp_path)
  for step in range(1, 6):
    with log.waiting():
      pass
    log.step(step, scalars(step), input_rate=100.0)
  log.write(5, {"knn_top1_k10": 0.5})
  log.close()
  first, second, rating = lines(tmp_path)
  assert (first["step"], first["loss_dino"]) == (2, 2.0)
  assert (second["step"], second["loss_dino"]) == (4, 4.0)
  assert first["images_per_second"] > 0
  assert 0 <= first["data_wait_share"] < 1
  assert first["input_images_per_second"] == 100.0
  assert rating.pop("time") >= second["time"] >= first["time"] > time.time() - 60
  assert rating == {"step": 5, "knn_top1_k10": 0.5}


def test_the_first_step_has_no_rates_as_the_compiler_had_most_of_its_time(tmp_path):
  log = open_log(tmp_path, log_every=1)
  for step in (1, 2):
    log.step(step, scalars(step), input_rate=100.0)
  log.close()
  first, second = lines(tmp_path)
  rates = {"data_wait_share", "images_per_second"}
  rates |= {"step_images_per_second", "input_images_per_second"}
  assert set(second) - set(first) == rates


def test_a_value_that_is_not_finite_ends_the_run_with_its_name_and_step(tmp_path):
  log = open_log(tmp_path, log_every=4)
  log.step(1, scalars(1), input_rate=100.0)
  log.step(2, scalars(2, loss_ibot=math.nan), input_rate=100.0)
  with pytest.raises(errors.UserError, match=r"^step 2: loss_ibot is nan"):
    log.flush()
  log.close()
  assert not lines(tmp_path)


def events(workdir):
  """Events without their times, which rise."""
  found = lines(workdir, "events.jsonl")
  times = [event.pop("time") for event in found]
  assert times == sorted(times)
  return found


class Page:
  """A page that records when it is written."""

  def __init__(self):
    self.calls = []

  def refresh(self):
    self.calls.append("refresh")

  def finish(self):
    self.calls.append("finish")


def test_starts_checkpoints_warnings_and_the_end_are_events(tmp_path):
  page = Page()
  with open_log(tmp_path, about={"device": "cpu"}, page=page) as log:
    log.step(1, scalars(1), input_rate=100.0)
    logging.warning("a %s", "record", extra={"event": "skipped"})
    logging.info("unheard")
    log.saved(1)
    assert page.calls == ["refresh"]
    log.compared({"raw pixels": {"knn_top1_k10": 0.5}})
  start, *rest = events(tmp_path)
  assert start["event"] == "start"
  assert (start["device"], start["nothing_learnt"], start["step"]) == ("cpu", 1.0, 0)
  assert rest == [
    {"event": "skipped", "text": "a record"},
    {"event": "checkpoint", "step": 1},
    {
      "event": "comparison",
      "step": 1,
      "results": {"raw pixels": {"knn_top1_k10": 0.5}},
    },
    {"event": "done", "step": 1},
  ]
  assert page.calls == ["refresh", "finish"]


def test_an_alarm_is_an_event(tmp_path):
  with open_log(tmp_path, alarm_window=2) as log:
    for step in (1, 2):
      log.step(step, scalars(step, loss_dino=1.0, loss_ibot=0.0), input_rate=1.0)
  (found,) = [event for event in events(tmp_path) if event["event"] == "alarm"]
  assert found["step"] == 2
  assert found["text"].startswith("ALARM step 2")


@pytest.mark.parametrize(
  ("error", "event"),
  [
    (SystemExit(143), {"event": "interrupted", "signal": "SIGTERM"}),
    (KeyboardInterrupt(), {"event": "interrupted", "signal": "SIGINT"}),
    (errors.UserError("no room"), {"event": "failed", "text": "no room"}),
    (KeyError("bug"), {"event": "failed", "text": "KeyError: 'bug'"}),
  ],
)
def test_how_a_run_ends_is_its_last_event(tmp_path, error, event):
  with pytest.raises(type(error)), open_log(tmp_path):
    raise error
  assert events(tmp_path)[-1] == {**event, "step": 0}


def test_events_of_earlier_starts_stay_and_a_line_that_was_cut_off_harms_none(tmp_path):
  with open_log(tmp_path):
    pass
  with (tmp_path / "events.jsonl").open("a") as file:
    file.write('{"time": 1, "eve')
  with open_log(tmp_path):
    pass
  found = (tmp_path / "events.jsonl").read_text().splitlines()
  assert len(found) == 5
  kinds = [json.loads(line)["event"] for line in (*found[:2], *found[3:])]
  assert kinds == ["start", "done"] * 2
