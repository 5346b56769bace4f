"""A fine-tuning is judged by its own loss and accuracy, and its page draws both."""

import math

import recorded

from dinojax.pages import comparison, curves, run_files, run_page, summary, verdict

UNIFORM = math.log(10)
RECIPE = {
  "task": "classes",
  "tune": "lora",
  "warmup_steps": 50,
  "batch_size": 64,
  "class_names": list("0123456789"),
}


def read(
  folder, losses=(1.0,), tests=(), *, train=0.9, events=(), recipe=RECIPE, **more
):
  """A run that logs each 10 steps, with a loss by turns and evaluations each 100."""
  start = recorded.event("start", 0, total_steps=500, finetune=recipe)
  lines = []
  for i in range(50):
    step, loss = 10 * (i + 1), losses[i * len(losses) // 50]
    lines.append(
      {"step": step, "loss": loss, "train_top1": train, "time": recorded.START + step}
      | more
    )
    if step % 100 == 0 and step // 100 <= len(tests):
      rated = {"test_top1": tests[step // 100 - 1], "test_top5": 0.99}
      lines.append({"step": step, "time": recorded.START + step} | rated)
  recorded.write(folder, lines, events=[start, *events])
  return run_files.read(folder)


def judge(*given, **more):
  return verdict.judge(read(*given, **more), now=recorded.START + 500)


def test_a_fine_tuning_that_learns_is_healthy_with_its_best_step(tmp_path):
  done = [recorded.event("done", 500)]
  found = judge(tmp_path, (2.0, 0.5), (0.6, 0.7, 0.84, 0.83), events=done)
  assert (found.state, found.kind, found.advice) == ("healthy", "good", ())
  assert found.sentence == (
    "Healthy: complete, step 500 of 500. The mean loss of the last 20 logged steps is"
    " 0.500; test_top1 is 83.0%, and was best at step 300: 84.0%."
  )


def test_without_an_evaluation_the_loss_alone_is_judged(tmp_path):
  found = judge(tmp_path)
  assert (found.state, found.kind) == ("healthy", "good")
  assert "the first evaluation is still to come" in found.sentence


def test_uniform_predictions_are_nothing_learnt(tmp_path):
  found = judge(tmp_path / "a", (UNIFORM,), (0.1,))
  assert (found.state, found.kind) == ("nothing learnt yet", "bad")
  assert "--learning_rate" in found.advice[0]
  slow = RECIPE | {"warmup_steps": 400}
  found = judge(tmp_path / "b", (UNIFORM,), recipe=slow)
  assert found.kind == "watch" and "rises until step 400" in found.advice[0]
  several = RECIPE | {"task": "labels"}  # whose loss has another level
  assert judge(tmp_path / "c", (UNIFORM,), recipe=several).state == "healthy"


def test_an_accuracy_that_falls_names_the_checkpoint_to_use(tmp_path):
  found = judge(tmp_path, (0.2,), (0.7, 0.8, 0.7, 0.6))
  assert (found.state, found.kind) == ("getting worse", "bad")
  assert "step=200" in found.advice[0]


def test_training_images_far_ahead_of_others_are_overfitting(tmp_path):
  found = judge(tmp_path, (0.1,), (0.6, 0.61), train=0.99)
  assert (found.state, found.kind) == ("overfitting", "watch")
  assert found.advice[0].startswith("train_top1 is 99.0%, and test_top1 61.0%: more")


def test_pixels_are_compared_with_pixels_and_not_with_the_mean_iou(tmp_path):
  start = recorded.event("start", 0, total_steps=50, finetune={"task": "segmentation"})
  lines = [{"step": i, "loss": 0.5, "train_patches": 0.9} for i in range(1, 50)]
  lines.append({"step": 50, "test_miou": 0.3, "test_accuracy": 0.85})
  run = run_files.read(recorded.write(tmp_path, lines, events=[start]))
  found = verdict.judge(run, now=recorded.START + 50)
  assert (found.state, found.advice) == ("healthy", ())
  assert "test_miou is 30.0%" in found.sentence


def test_waiting_for_images_is_starved_of_data(tmp_path):
  found = judge(tmp_path, (0.5,), (0.9,), data_wait_share=0.5)
  assert (found.state, found.kind) == ("starved of data", "watch")


def test_the_page_draws_loss_and_accuracy_and_has_the_settings(tmp_path):
  run = read(tmp_path, (2.0, 0.5), (0.6, 0.7))
  drawn, _ = curves.charts([run])
  accuracy, loss = drawn[0], next(x for x in drawn if x["title"] == "Total loss")
  assert {line["name"] for line in accuracy["lines"]} == {
    *("train_top1", "test_top1", "test_top5")
  }
  assert accuracy["lines"][0]["mean"][0] == 90
  assert loss["levels"] == [{"name": "uniform predictions", "value": UNIFORM}]
  facts = dict(summary.facts(run))
  assert facts["best accuracy"] == "70.0% at step 200 (test_top1)"
  assert facts["images seen"] == "32,000, 64 a step"
  assert "best k-NN top-1" not in facts
  text = run_page.render([run], now=recorded.START)
  assert "&quot;tune&quot;: &quot;lora&quot;" in text or '"tune": "lora"' in text


def test_fine_tunings_are_compared_by_accuracy_and_settings(tmp_path):
  runs = [
    read(tmp_path / "a", (0.5,), (0.6, 0.7)),
    read(tmp_path / "b", (0.5,), (0.9,), recipe=RECIPE | {"tune": "all"}),
  ]
  text = run_page.render(runs, now=recorded.START)
  assert "70.0% at step 200 (test_top1)" in text
  found = comparison.differences([run.config for run in runs])
  assert found == [("finetune.tune", ['"lora"', '"all"'])]
