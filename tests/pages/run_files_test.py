"""What a page reads of a run is what its files hold, whatever has happened to them."""

import math

import numpy as np
import pytest
import recorded

from dinojax import errors
from dinojax.pages import hours, run_files


def test_series_come_back_with_their_steps_and_times(tmp_path):
  lines = [recorded.numbers(step) for step in (10, 20)]
  lines.insert(1, {"step": 10, "knn_top1_k10": 0.25, "time": recorded.START + 11})
  run = run_files.read(recorded.write(tmp_path, lines, settings={}))
  assert run.series["loss_dino"].steps.tolist() == [10, 20]
  assert run.series["loss_dino"].values.tolist() == [x["loss_dino"] for x in lines[::2]]
  assert run.series["knn_top1_k10"].times.tolist() == [recorded.START + 11]
  assert (run.step, run.total_steps, run.batch_size, run.logged) == (20, 1_000, 64, 2)
  assert run.best_knn() == ("knn_top1_k10", 10, 0.25)


def test_lines_that_are_cut_off_or_none_of_ours_are_left_out(tmp_path):
  folder = recorded.write(tmp_path, [recorded.numbers(10)])
  with (folder / "metrics.jsonl").open("ab") as file:
    file.write(b'\xff\xfe\n[1]\n"x"\n{"loss": 1}\n{"step": -1, "loss": 1}\n')
    file.write(b'{"step": true, "x": 1}\n{"step": 1e3, "x": 1}\n' + b"[" * 100_000)
    file.write(b'\n{"step": 20, "loss": 2.0, "a": true, "b": "c", "time": "d"}\n')
    file.write(b'{"step": 30, "lo')
  run = run_files.read(folder)
  assert run.series["loss"].values.tolist() == [recorded.numbers(10)["loss"], 2.0]
  assert math.isnan(run.series["loss"].times[1])
  assert not {"a", "b", "x"} & set(run.series)
  assert run.config is None
  assert run.field("data.batch_size") is None


def test_numbers_that_are_not_finite_are_named_and_drawn_nowhere(tmp_path):
  lines = [{"step": 1, "loss": 1.0, "x": math.nan}, {"step": 2, "loss": math.inf}]
  lines.append({"step": 3, "loss": 10**400})
  run = run_files.read(recorded.write(tmp_path, lines))
  assert run.not_finite == ["x", "loss"]
  assert run.series["loss"].values.tolist() == [1.0]
  assert "x" not in run.series


def test_results_of_evaluate_are_no_curves(tmp_path):
  lines = [
    recorded.numbers(10),
    {"step": 10, "eval_linear_top1": 0.5, "eval_crop": 224},
  ]
  run = run_files.read(recorded.write(tmp_path, lines))
  assert run.evaluations == [lines[1]]
  assert not [name for name in run.series if name.startswith("eval")]


def test_checkpoints_are_those_that_are_there_and_damaged_ones_are_named(tmp_path):
  folder = recorded.write(tmp_path, [recorded.numbers(10)], checkpoints=(5, 10, "x"))
  (folder / "checkpoints" / "damaged-7-1").mkdir()
  run = run_files.read(folder)
  assert (list(run.checkpoints), run.damaged) == ([5, 10], ["damaged-7-1"])


def test_a_folder_that_is_no_run_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match="holds no run"):
    run_files.read(tmp_path)


def test_hours_leave_out_pauses_and_count_from_the_start(tmp_path):
  hour = 3_600.0
  lines = [
    {"step": 10, "loss": 1.0, "time": recorded.START + 1 * hour},
    {"step": 20, "loss": 1.0, "time": recorded.START + 2 * hour},
    {"step": 30, "loss": 1.0, "time": recorded.START + 50.5 * hour},
  ]
  # Killed after step 20 was logged, and started again at step 20 two days later.
  events = [recorded.started(), recorded.started(20, after=50 * hour)]
  run = run_files.read(recorded.write(tmp_path, lines, events=events))
  steps, found = hours.hours_at_work(run)
  assert steps.tolist() == [10, 20, 30]
  np.testing.assert_allclose(found, [1.0, 2.0, 2.5])
  assert hours.restarts(run) == [20]


def test_hours_of_a_run_that_logged_no_times_are_not_known(tmp_path):
  lines = [{"step": 10, "loss": 1.0}]
  assert hours.hours_at_work(run_files.read(recorded.write(tmp_path, lines))) is None
  lines.append({"step": 20, "loss": 1.0, "time": recorded.START})  # a later version
  assert hours.hours_at_work(run_files.read(recorded.write(tmp_path, lines))) is None
