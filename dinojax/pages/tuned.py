"""Health of a fine-tuning for its verdict: whether the task is learnt, and what to do.

Free of JAX.
"""

import math

import numpy as np

from dinojax.pages import run_record, wording
from dinojax.reporting import alarm

METRICS = ("top1", "map", "miou")  # by which the best checkpoint is chosen
# What training logs, and the number of other images that means the same.
ALIKE = {"train_top1": "top1", "train_patches": "accuracy"}
RECENT = 20  # logged steps whose mean is judged
MIN_POINTS = 3
UNIFORM = 0.97  # of ln C, the loss of uniform predictions: above, nothing is learnt
DECLINE = 0.95  # of the best accuracy: below, training harms
OVERFIT = 0.2  # share by which training images are more often right than others


def ranked(run: run_record.Run) -> tuple[str, int, float] | None:
  """(name, step, share) of the best accuracy on --val, or else --test; None: none."""
  for name in (f"{source}_{x}" for source in ("val", "test") for x in METRICS):
    if series := run.series.get(name):
      # As the checkpoints that stay: of equal ones the newest.
      best = len(series.values) - 1 - int(series.values[::-1].argmax())
      return name, int(series.steps[best]), float(series.values[best])
  return None


def describe_best(run: run_record.Run) -> str:
  """The best accuracy in words."""
  if (best := ranked(run)) is None:
    return "not measured"
  name, step, share = best
  return f"{wording.share(share)} at step {step:,} ({name})"


def uniform_loss(run: run_record.Run) -> float | None:
  """Loss of uniform predictions of one class for each image; None of other tasks."""
  names = run.field("finetune.class_names")
  if run.field("finetune.task") not in (None, "classes") or not isinstance(names, list):
    return None
  return math.log(len(names)) if len(names) > 1 else None


def health(run: run_record.Run) -> tuple[str, str, str, tuple[str, ...]]:
  """The state of a fine-tuning, its kind, the sentence that says it, and advice.

  As the fields of `verdict.Verdict`.
  """
  losses = _recent(run, "loss")
  if len(losses) < MIN_POINTS:
    return "too early to say", "watch", "Too few steps are logged.", ()
  mean, level = float(losses.mean()), uniform_loss(run)
  seen = f"The mean loss of the last {len(losses)} logged steps is {mean:.3f}"
  if level and mean > UNIFORM * level:
    warmup = run.count("finetune.warmup_steps") or 0
    warming = run.step < 2 * warmup
    return (
      "nothing learnt yet",
      "watch" if warming else "bad",
      f"{seen}, that of uniform predictions ({level:.3f}).",
      (
        f"Wait: the learning rate rises until step {warmup:,}."
        if warming
        else "Try another --learning_rate, ten times as high or as low; check that the"
        " labels are right.",
      ),
    )
  best = ranked(run)
  if best is None:
    return "healthy", "good", f"{seen}; the first evaluation is still to come.", ()
  name, step, share = best
  last = run.value(name)
  seen = f"{seen}; {name} is {last:.1%}, and was best at step {step:,}: {share:.1%}."
  if last < DECLINE * share:
    return (
      "getting worse",
      "bad",
      seen,
      (
        f"Use the checkpoint of step {step:,}, which stays: classifier.load(...,"
        f" step={step}). For the next run, give fewer --steps or a lower"
        " --learning_rate.",
      ),
    )
  advice, state = [], "healthy"
  source = name.partition("_")[0]
  for trained, other in ALIKE.items():
    right, reached = _recent(run, trained), run.value(f"{source}_{other}")
    if len(right) and reached is not None and right.mean() - reached > OVERFIT:
      state = "overfitting"
      advice.append(
        f"{trained} is {right.mean():.1%}, and {source}_{other} {reached:.1%}: more"
        " images, a smaller --min_area, --tune=lora or head, or fewer --steps narrow"
        " the gap."
      )
  wait = _recent(run, "data_wait_share")
  if len(wait) and float(np.median(wait)) > alarm.MUCH_WAITING:
    state = "starved of data" if state == "healthy" else state
    found = run.last_event("input") or {}
    advice.append(found.get("text", "More --workers let the input keep up."))
  return state, "watch" if advice else "good", seen, tuple(advice)


def _recent(run, name) -> np.ndarray:
  series = run.series.get(name)
  return np.zeros(0) if series is None else series.values[-RECENT:]
