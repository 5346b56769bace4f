"""The page of a run holds what its files say, escaped, and stays small."""

import json
import math
import random
import re
import time

import pytest
import recorded

from dinojax.pages import charts, comparison, curves, run_files, run_page, wording

HOSTILE = "<img src=x onerror=alert(1)>"


def read(folder, lines=None, **what):
  lines = (
    [recorded.numbers(step) for step in range(10, 501, 10)]
    if lines is None
    else (lines)
  )
  what = {"settings": {}, "events": [recorded.started()], **what}
  return run_files.read(recorded.write(folder, lines, **what))


def render(*runs):
  return run_page.render(runs, now=recorded.START + 600)


def rows(page):
  """What the summary of a run says."""
  found = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
  return dict(found)


def test_the_summary_says_what_ran_on_what_and_how_fast(tmp_path):
  run = read(tmp_path, checkpoints=(250, 500))
  said = rows(render(run))
  assert said["steps"] == "500 of 1,000"
  assert said["images seen"] == "32,000, 64 a step"
  assert said["time at work"] == "8 min"
  assert said["recent throughput"] == "64 images/s"
  assert said["devices waited for data"] == "1.0%"
  assert said["parameters"] == "backbone 1.23 M and dino_head 10,000"
  assert said["devices"] == "TPU v5e, mesh data 2 x fsdp 4, 2 processes"
  assert said["checkpoints on disk"] == "250 and 500"
  assert said["restarts"] == "none"


def test_the_best_accuracy_stands_beside_that_of_raw_pixels(tmp_path):
  lines = [recorded.numbers(500), {"step": 500, "knn_top1_k10": 0.5}]
  results = {"raw pixels": {"knn_top1_k10": 0.4}}
  events = [recorded.started(), recorded.event("comparison", 500, results=results)]
  said = rows(render(read(tmp_path, lines, events=events)))
  wanted = "50.0% at step 500 (knn_top1_k10); raw pixels 40.0%"
  assert said["best k-NN top-1"] == wanted


def test_the_page_says_how_many_images_an_evaluation_has(tmp_path):
  lines = [recorded.numbers(500), {"step": 500, "knn_top1_k10": 0.5}]
  knn = {"every": 500, "train": "folder:a", "test": HOSTILE}
  new = read(tmp_path / "new", lines, settings={"knn": knn})
  page = render(new)
  wanted = "train 2,000 (folder:a); test 1,250 (&lt;img src=x onerror=alert(1)&gt;)"
  assert rows(page)["evaluation images"] == f"{wanted}; each is 0.08% of accuracy"
  assert "2,000 train, 1,250 test" in render(new, read(tmp_path / "b"))
  title, size = "k-NN top-1 of the teacher", "1,250 test images, 2,000 train images."
  hint = {chart["title"]: chart["hint"] for chart in curves.charts([new])[0]}
  assert hint[title].endswith(size) and size not in hint["Total loss"]
  for i, logged in enumerate((None, {}, {"train": 1}, {"train": 1, "test": 0.5}, [1])):
    events = [recorded.started(evaluation_images=logged)]
    old = read(tmp_path / str(i), lines, events=events, settings={"knn": knn})
    said = rows(render(old))["evaluation images"]
    assert said.startswith("train not known (folder:a); test not known (")
    assert "each" not in said
    (level,) = {x["hint"] for x in curves.charts([new, old])[0] if title in x["title"]}
    assert size not in level


def test_what_an_old_run_did_not_log_is_not_known(tmp_path):
  lines = [{"step": 10, "loss_dino": 1.0, "loss_ibot": 1.0, "loss": 2.0}]
  page = render(read(tmp_path, lines, events=[], settings=None))
  said = rows(page)
  for name in ("images seen", "time at work", "recent throughput", "devices"):
    assert said[name] == wording.NOT_KNOWN
  assert said["restarts"] == said["parameters"] == wording.NOT_KNOWN
  assert said["best k-NN top-1"] == "not measured"
  assert "nan" not in re.sub("<script.*?</script>", "", page, flags=re.DOTALL).lower()


@pytest.mark.parametrize("lines", [[], [{"step": 1, "knn_top1_k10": 0.5}]])
def test_a_run_that_has_hardly_begun_has_a_page(tmp_path, lines):
  assert "Too early to say" in render(read(tmp_path, lines))


def test_every_logged_number_has_its_curve_and_levels_are_drawn(tmp_path):
  lines = [recorded.numbers(step, new_number=0.5) for step in (10, 20)]
  lines.append({"step": 20, "knn_top1_k10": 0.25})
  results = {
    "trained teacher": {"knn_top1_k10": 0.25},
    "raw pixels": {"knn_top1_k10": 0.125},
  }
  events = [recorded.started(), recorded.event("comparison", 20, results=results)]
  found, left_out = curves.charts([read(tmp_path, lines, events=events)])
  assert left_out == 0
  names = [line["name"] for chart in found for line in chart["lines"]]
  logged = set().union(*lines) - {"step", "time"}
  assert sorted(names) == sorted({*logged, curves.SUM})
  by_title = {chart["title"]: chart for chart in found}
  level = recorded.NOTHING_LEARNT
  assert by_title["DINO + iBOT loss"]["levels"] == [
    {"name": "nothing learnt", "value": level},
    {"name": "collapse", "value": 0.02 * level},
  ]
  knn = by_title["k-NN top-1 of the teacher"]
  assert knn["lines"][0]["mean"] == [25]
  assert knn["levels"] == [{"name": "raw pixels, top1_k10", "value": 12.5}]
  (entropy,) = by_title["Teacher entropy"]["levels"]
  assert entropy["value"] == math.log(recorded.K)
  for chart in found:
    assert re.search(r"\(.+\)$|images per second", chart["label"])  # its unit


def test_a_restart_under_other_schedules_says_which(tmp_path):
  line = "extended from 900 to 1000 steps; at step 240: learning_rate 0.1 to 0.2"
  events = [recorded.started(), recorded.started(240, after=260, extended=line)]
  said = rows(render(read(tmp_path, events=events)))
  assert said["restarts"].startswith("1, at step 240; the last on ")
  assert said["restarts"].endswith(f"; {line}")


def test_checkpoints_restarts_alarms_and_errors_are_marks_at_their_steps(tmp_path):
  events = [
    recorded.started(),
    recorded.event("alarm", 100, text="ALARM"),
    recorded.event("alarm", 200, text="ALARM"),
    {key: x for key, x in recorded.event("alarm", 210).items() if key != "step"},
    recorded.event("failed", 250, text="loss is nan"),
    recorded.started(240, after=260),
    recorded.event("failed", 507, text="loss is nan"),  # after the last logged step
  ]
  marks = curves.describe(read(tmp_path, events=events, checkpoints=(240, 480)))
  assert (marks["checkpoints"], marks["restarts"]) == ([240, 480], [240])
  assert (marks["alarms"], marks["errors"]) == ([100, 200], [250, 507])
  assert marks["step"] == 507


def test_numbers_beyond_what_a_page_can_draw_are_counted(tmp_path):
  line = recorded.numbers(10, **{f"new_{i}": 1.0 for i in range(curves.MAX_OTHER + 7)})
  run = read(tmp_path, [line])
  assert curves.charts([run])[1] == 7
  assert not charts.library() or "7 more numbers are in metrics.jsonl" in render(run)


def test_runs_over_each_other_have_a_chart_for_each_number(tmp_path):
  runs = [read(tmp_path / name / "run") for name in "ab"]
  labels = comparison.names(runs)
  assert labels == ["a/run", "b/run"]
  page = render(*runs)
  content = re.search(r'id="curves">(.*?)</script>', page)
  if charts.library():
    found = json.loads(content[1])
    assert [run["name"] for run in found["runs"]] == labels
    for chart in found["charts"]:
      assert [line["name"] for line in chart["lines"]] == labels
      assert [line["run"] for line in chart["lines"]] == [0, 1]


def test_a_comparison_names_each_field_that_differs_and_no_other(tmp_path):
  one = recorded.config()
  two = recorded.config(total_steps=2_000, extra={"new": True})
  assert comparison.differences([one, two, one]) == [
    ("total_steps", ["1000", "2000", "1000"]),
    ("extra.new", [comparison.MISSING, "true", comparison.MISSING]),
  ]
  assert comparison.differences([one, one]) == []
  assert len(comparison.differences([one, None])) == 9  # all of them


def test_levels_of_runs_that_differ_have_their_names(tmp_path):
  runs = [read(tmp_path / name) for name in "ac"]
  runs.append(read(tmp_path / "b", events=[recorded.started(nothing_learnt=5.0)]))
  levels = curves.charts(runs)[0][0]["levels"]
  assert {"name": "nothing learnt (b)", "value": 5.0} in levels
  assert {"name": "collapse (a, c)", "value": 0.02 * recorded.NOTHING_LEARNT} in levels


def test_text_of_files_and_configs_stays_text(tmp_path):
  lines = [recorded.numbers(step, **{HOSTILE: 1.0}) for step in range(10, 501, 10)]
  lines.append({"step": 500, "eval_top1": 0.5, f"eval_{HOSTILE}": HOSTILE})
  events = [
    recorded.started(device=HOSTILE, data=HOSTILE, parameters={HOSTILE: 1}),
    recorded.event("skipped", 20, text=HOSTILE),
    recorded.event("input", 20, text=HOSTILE),
    recorded.event(HOSTILE, 30),
    recorded.event("failed", 500, text=HOSTILE),
  ]
  folders = [tmp_path / f"{i}" / HOSTILE.replace("/", "") for i in range(2)]
  settings = {HOSTILE: HOSTILE, "data": {"sources": [HOSTILE], HOSTILE: {HOSTILE: 1}}}
  first = read(folders[0], lines, events=events, settings=settings)
  second = read(folders[1], lines, events=events)
  for page in (render(first), render(first, second)):
    assert HOSTILE in page.replace("&lt;", "<").replace("&gt;", ">")
    assert "<img" not in page


ANYTHING = (None, True, -1, 0, 1.5, 10**400, math.nan, math.inf, 1e308, "", "x", [], {})
ANYTHING += ([1, "a"], {"a": 1}, {"a": {"b": []}})


def spoilt(value, rng, share):
  """JSON in which a share of all values is another one, or missing."""
  if rng.random() < share:
    return rng.choice(ANYTHING)
  if isinstance(value, dict):
    kept = {k: x for k, x in value.items() if rng.random() > share / 2}
    return {k: spoilt(x, rng, share) for k, x in kept.items()}
  return [spoilt(x, rng, share) for x in value] if isinstance(value, list) else value


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_files_that_hold_anything_make_a_page(tmp_path, share):
  results = {"raw pixels": {"knn_top1_k10": 0.4, "linear": 0.1}, "trained teacher": {}}
  knn = {"every": 10, "train": "a", "test": "b"}
  kinds = ("input", "skipped", "failed", "interrupted", "done", "alarm")
  for seed in range(20):
    rng = random.Random(seed)
    lines = [
      recorded.numbers(step, knn_top1_k10=0.3, linear=0.2)
      for step in range(10, 301, 10)
    ]
    lines.append({"step": 300, "eval_x": 1.0, "eval_y": "z"})
    events = [
      recorded.started(data="d", doubts=["a"], extended="e"),
      recorded.event("comparison", 300, results=results),
      recorded.started(100, after=100.5),
      recorded.event(rng.choice(kinds), 300, text="t", signal="S"),
    ]
    folder = recorded.write(
      tmp_path / str(seed),
      [spoilt(line, rng, share) for line in lines],
      events=[spoilt(event, rng, share) for event in events],
      settings={},
    )
    config = json.dumps(spoilt(recorded.config(knn=knn), rng, share))
    (folder / "config.json").write_text(config)
    run = run_files.read(folder)
    # The config stands on the page as it is.
    seen = re.sub("<(script|pre).*?</(script|pre)>", "", render(run), flags=re.DOTALL)
    assert not re.search(r"\b(nan|inf)\b", seen)
    assert render(run, run).endswith("</html>\n")


def test_a_hundred_thousand_logged_steps_make_a_small_page_in_seconds(tmp_path):
  run = run_files.read(recorded.write_long(tmp_path, 100_000))
  assert run.logged == 100_000
  start = time.perf_counter()
  one, two = render(run), render(run, run)
  assert time.perf_counter() - start < 20  # a second each, where nothing else runs
  assert max(len(one), len(two)) < 5_000_000
  if charts.library():
    assert "the mean of up to 67 logged steps" in one


def test_wording_of_numbers():
  assert wording.number(1_234_567) == "1,234,567"
  assert wording.number(0.0123456) == "0.01235"
  assert wording.number(None) == wording.number(math.nan) == wording.NOT_KNOWN
  assert wording.large(1_234_567_890) == "1.23 B"
  assert wording.duration(90) == "90 s"
  assert wording.duration(7_500) == "2 h 5 min"
  assert wording.duration(273_600) == "3 d 4 h"
  assert wording.moment(0.0) == wording.NOT_KNOWN
  assert wording.listed(["a", "b", "c"]) == "a, b and c"


def test_the_page_of_a_run_shows_the_pictures_in_its_workdir(tmp_path):
  run = read(tmp_path)
  before = render(run)
  assert 'class="pictures"' not in before
  section = {"kind": "table", "name": "crops", "title": HOSTILE, "text": ""}
  pictures = {"about": "step 500", "sections": [{**section, "heads": [], "rows": []}]}
  (tmp_path / "pictures").mkdir()
  (tmp_path / "pictures" / "pictures.json").write_text(json.dumps(pictures))
  page = render(run)
  assert page.count('<section class="pictures" id="pictures-crops">') == 1
  assert "step 500" in page and "<img" not in page
  both = render(run, read(tmp_path / "other"))  # compared, they would not line up
  assert 'class="pictures"' not in both


def test_results_of_a_suite_stand_beside_published_ones_at_the_newest_step(tmp_path):
  def line(step, **numbers):
    numbers = {f"eval_{k}": x for k, x in numbers.items()}
    return {"step": step, "eval_suite": "small", "eval_data": "cifar10", **numbers}

  knn = dict(knn_top1_k10=0.9, knn_top1_k20=0.905)
  lines = [
    recorded.numbers(10),
    line(10, logreg_top1=0.1),
    line(20, **knn, knn_top1_k20_low=0.899, knn_top1_k20_high=0.911),
    line(20, logreg_top1=0.925),
  ]
  page = render(read(tmp_path, lines))
  assert "cifar10, step 20" in page and "cifar10, step 10" not in page
  ours = "<tr><th>ours</th><td>90.5%</td><td>92.5%</td><td></td></tr>"
  assert ours in page and "<td>89.9-91.1%</td>" in page
  assert "<td>84.0%</td><td></td><td>https://docs.lightly.ai/" in page
