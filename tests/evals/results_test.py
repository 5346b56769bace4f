"""Results are printed and recorded task by task, on stdout and in two files."""

import json

import pytest

from dinojax.evals import results

KNN, LINEAR = {"knn_top1_k1": 0.5}, {"head": "cls1", "rate": 0.25}


def test_each_task_is_printed_and_recorded_when_it_is_added(tmp_path, capsys):
  path = tmp_path / "r.json"
  run = tmp_path / "run"
  run.mkdir()
  found = results.Results({"crop": 16}, path=str(path), run=(str(run), 30))
  found.add(KNN, {"feature": "cls", "layers": 4, "val": None})
  assert json.loads(path.read_text()) == {"crop": 16, "results": KNN}
  assert capsys.readouterr().out.split() == ["top-1", "k-NN,", "k=1", "50.0%"]
  found.add(LINEAR, {"crop": 16})
  assert json.loads(path.read_text())["results"] == KNN | LINEAR
  assert capsys.readouterr().out.split() == ["value", "head", "cls1", "rate", "0.25"]
  found.close()
  lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
  assert lines == [
    {"step": 30, "eval_knn_top1_k1": 0.5, "eval_feature": "cls", "eval_layers": 4},
    {"step": 30, "eval_rate": 0.25, "eval_crop": 16},
  ]
  said = capsys.readouterr()
  assert said.err == f"added to {run}/metrics.jsonl as step 30\n" and not said.out


def test_a_run_that_cannot_be_written_to_gives_a_note_and_the_numbers(tmp_path, capsys):
  (tmp_path / "metrics.jsonl").mkdir()
  found = results.Results({}, path=None, run=(str(tmp_path), 30))
  for task in (KNN, LINEAR):
    found.add(task, {})
  found.close()
  said = capsys.readouterr()
  assert "50.0%" in said.out and "0.25" in said.out
  (line,) = said.err.splitlines()
  assert line.startswith("note: the results are not added to the run: ")
  assert "Is a directory" in line


def test_numbers_that_are_not_finite_are_no_json(tmp_path):
  found = results.Results({}, path=str(tmp_path / "r.json"), run=None)
  with pytest.raises(ValueError, match="not JSON compliant"):
    found.add({"rate": float("nan")}, {})
  assert list(tmp_path.iterdir()) == []
