"""Each state of a run has its sentence, and says what to do; none comes of nothing."""

import pytest
import recorded

from dinojax.pages import run_files, verdict

LEVEL = recorded.NOTHING_LEARNT
HOUR = 3_600


def judge(tmp_path, lines, events=None, *, settings=None, later=0.0):
  """The verdict so many seconds after the last line."""
  events = [recorded.started()] if events is None else events
  folder = recorded.write(tmp_path, lines, events=events, settings=settings or {})
  now = recorded.START + (lines[-1]["step"] if lines else 0) + later
  return verdict.judge(run_files.read(folder), now=now)


def healthy(last=500, **changes):
  return [recorded.numbers(step, **changes) for step in range(10, last + 1, 10)]


def at(loss):
  """The parts of a loss."""
  return {"loss_dino": loss * 2 / 3, "loss_ibot": loss / 3}


def test_a_run_that_learns_is_healthy(tmp_path):
  found = judge(tmp_path, healthy())
  assert (found.state, found.kind, found.advice) == ("healthy", "good", ())
  assert found.sentence.startswith("Healthy: training, step 500 of 1,000. The")
  assert f"nothing learnt ({LEVEL:.3f})" in found.sentence


def test_a_run_that_is_done_says_so(tmp_path):
  events = [recorded.started(), recorded.event("done", 1_000)]
  found = judge(tmp_path, healthy(1_000), events, later=1_000 * HOUR)
  assert found.sentence.startswith("Healthy: complete, step 1,000 of 1,000. The")


def test_a_complete_run_shorter_than_the_window_is_judged_by_its_second_half(tmp_path):
  events = [recorded.started(total_steps=60), recorded.event("done", 60)]
  lines = [*healthy(30, **at(0.019 * LEVEL)), *healthy(60)[3:]]
  found = judge(tmp_path, lines, events)
  assert found.sentence.startswith("Healthy: complete, step 60 of 60. The")
  assert "of the last 30 steps" in found.sentence


def test_nothing_learnt_is_waited_for_in_the_warm_up_and_bad_after_it(tmp_path):
  early = judge(tmp_path / "a", healthy(150, **at(0.995 * LEVEL)))
  assert (early.state, early.kind) == ("nothing learnt yet", "watch")
  assert early.advice == ("Wait: the learning rate rises until step 100.",)
  late = judge(tmp_path / "b", healthy(500, **at(1.005 * LEVEL)))
  assert (late.state, late.kind) == ("nothing learnt yet", "bad")
  assert "higher learning rate" in late.advice[0]


def test_a_loss_near_0_is_a_collapse(tmp_path):
  found = judge(tmp_path, healthy(500, **at(0.019 * LEVEL)))
  assert (found.state, found.kind) == ("collapsing", "bad")
  assert "one prototype" in found.sentence
  assert "sinkhorn" not in str(found.advice)
  settings = {"losses": {"targets": "centering"}}
  lines = healthy(500, **at(0.019 * LEVEL))
  assert "sinkhorn" in str(judge(tmp_path, lines, settings=settings).advice)


@pytest.mark.parametrize("share", [0.021, 0.98, 1.02])
def test_between_the_levels_and_above_them_it_learns(tmp_path, share):
  assert judge(tmp_path, healthy(500, **at(share * LEVEL))).state == "healthy"


def test_a_run_that_waits_for_images_is_starved_by_its_own_words(tmp_path):
  waits = healthy(data_wait_share=0.4)
  found = judge(tmp_path / "a", waits)
  assert (found.state, found.kind) == ("starved of data", "watch")
  assert "40% of the time" in found.sentence
  events = [
    recorded.started(),
    recorded.event("input", 10, text="set config.workers=9"),
  ]
  assert judge(tmp_path / "b", waits, events).advice == ("set config.workers=9",)


@pytest.mark.parametrize(
  "image, state, kind",
  [(0.15, "healthy", "good"), (0.95, "nothing learnt yet", "watch")],
)
def test_a_student_of_features_is_judged_by_its_distance(tmp_path, image, state, kind):
  lines = [
    {"step": step, "loss": 1.0, "loss_image": image, "loss_patches": 0.25}
    for step in (10, 20)
  ]
  found = judge(tmp_path, lines)
  assert (found.state, found.kind) == (state, kind)
  assert f"is {image:.3f} for images and 0.250 for patches" in found.sentence


def test_a_teacher_below_raw_pixels_has_to_train_longer(tmp_path):
  for pixels, kind in ((0.7, "watch"), (0.5, "good")):
    lines = [*healthy(500), {"step": 500, "knn_top1_k10": 0.6}]
    results = {
      "trained teacher": {"knn_top1_k10": 0.6},
      "raw pixels": {"knn_top1_k10": pixels},
    }
    events = [recorded.started(), recorded.event("comparison", 500, results=results)]
    found = judge(tmp_path / kind, lines, events)
    assert (found.state, found.kind) == ("healthy", kind)
    assert ("is 60.0%, and of raw pixels 70.0%" in str(found.advice)) == (pixels > 0.6)


def test_knn_that_falls_is_getting_worse(tmp_path):
  lines = [*healthy(300), {"step": 300, "knn_top1_k10": 0.6}]
  lines += [recorded.numbers(310), {"step": 310, "knn_top1_k10": 0.4}]
  found = judge(tmp_path, lines)
  assert (found.state, found.kind) == ("getting worse", "bad")
  assert "from 60.0% at step 300 to 40.0%" in found.sentence


def test_a_run_that_was_stopped_can_be_resumed(tmp_path):
  events = [recorded.started(), recorded.event("interrupted", 500, signal="SIGTERM")]
  found = judge(tmp_path, healthy(), events)
  assert (found.state, found.kind) == ("stopped", "watch")
  assert "stopped by SIGTERM at step 500 of 1,000" in found.sentence
  assert "the same command resumes" in found.advice[-1]


def test_a_run_without_a_sign_of_life_was_killed(tmp_path):
  assert judge(tmp_path / "a", healthy(), later=0.9 * HOUR).state == "healthy"
  found = judge(tmp_path / "b", healthy(), later=3 * HOUR)
  assert found.state == "stopped"
  assert "last sign of life 3 h 0 min before" in found.sentence


def test_an_error_is_shown_with_what_to_do(tmp_path):
  text = "step 500: loss is nan; try a lower learning rate"
  events = [recorded.started(), recorded.event("failed", 500, text=text)]
  found = judge(tmp_path, healthy(), events)
  assert (found.state, found.kind) == ("failed", "bad")
  assert found.advice[0] == text


def test_a_run_that_was_started_again_after_an_error_works(tmp_path):
  events = [recorded.event("failed", 90, text="x"), recorded.started(90, after=100.0)]
  assert judge(tmp_path, healthy(), events).state == "healthy"


def test_little_is_too_early_to_say_and_nothing_is_judged_from_nothing(tmp_path):
  for i, lines in enumerate(([], healthy(20), [{"step": 500, "loss": 1.0}])):
    found = judge(tmp_path / str(i), lines)
    assert (found.state, found.kind) == ("too early to say", "watch"), lines
  found = judge(tmp_path / "no_level", healthy(), [])
  assert found.state == "not judged"
  assert "nan" not in found.sentence
