"""Verdict on a run: its state in a sentence, and what to do.

Free of JAX. Nothing is judged from numbers that are not there.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from dinojax.pages import run_record, tuned, wording
from dinojax.reporting import alarm

DECLINE = 0.8  # of the best k-NN: below, features get worse
UNRELATED = 0.9  # distance of image features: from here on nothing is learnt
MIN_POINTS = 3  # of a mean loss
PIXELS = "raw pixels"  # in `knn.Evaluation.compare`
HANG_MINUTES = 30.0  # where the config is not known


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A state, the sentence that says it, and what to do.

  kind: "good", "watch" or "bad".
  """

  state: str
  kind: str
  sentence: str
  advice: tuple[str, ...]


def judge(run: run_record.Run, *, now: float) -> Verdict:
  """Judges a run. now: seconds since 1970."""
  life, life_advice = _life(run, now)
  health = _health(run)
  ended = run.last_event("start", "failed", "interrupted", "done")
  if ended and ended["event"] == "failed":
    advice = (ended.get("text", wording.NOT_KNOWN), *life_advice)
    return Verdict("failed", "bad", f"Failed: {life}. {health.sentence}", advice)
  stopped = life.startswith("stopped")
  kind = "watch" if stopped and health.kind == "good" else health.kind
  state = "stopped" if stopped and health.kind == "good" else health.state
  title = state.capitalize()
  sentence = f"{title}: {life}. {health.sentence}"
  return Verdict(state, kind, sentence, (*health.advice, *life_advice))


def _life(run, now) -> tuple[str, tuple[str, ...]]:
  """Whether the run works, or how it has ended; and what to do about that."""
  total = run.total_steps
  progress = f"step {run.step:,}" + (f" of {total:,}" if total else "")
  resume = "the same command resumes from the newest checkpoint"
  ended = run.last_event("start", "failed", "interrupted", "done")
  kind = ended["event"] if ended else None
  if kind == "failed":
    return f"ended by an error at {progress}", (f"Mend what it names; {resume}.",)
  if kind == "interrupted":
    name = ended.get("signal", "a signal")
    return f"stopped by {name} at {progress}, saved", (f"To go on: {resume}.",)
  if kind == "done" or (total and run.step >= total):
    return f"complete, {progress}", ()
  minutes = run_record.number(run.field("hang_minutes")) or HANG_MINUTES
  silent = now - run.last_sign
  if silent < 120 * minutes:  # twice as long: the first step may take half an hour more
    return f"training, {progress}", ()
  return (
    f"stopped at {progress}, without a word: last sign of life"
    f" {wording.duration(silent)} before this page",
    (f"It was killed, or its machine was lost; {resume}.",),
  )


def _health(run) -> Verdict:
  """Whether it learns."""
  if run.field("finetune"):
    return Verdict(*tuned.health(run))
  if {"loss_image", "loss_patches"} <= run.series.keys():
    return _of_features(run)
  judged = _recent_loss(run)
  level = run.nothing_learnt
  if judged is None:
    window = run.alarm_window
    after = f"; a first judgement takes {window:,} steps" if window else ""
    return Verdict("too early to say", "watch", f"Too few steps are logged{after}.", ())
  if level is None:
    return Verdict(
      "not judged",
      "watch",
      "The level of a student that has learnt nothing is not known, since neither"
      " events nor config say the number of prototypes.",
      (),
    )
  mean, steps = judged
  seen = f"The mean DINO + iBOT loss of the last {steps:,} steps is {mean:.3f}"
  low = alarm.COLLAPSED * level
  if alarm.is_collapse(mean, level):
    centred = run.field("losses.targets") == "centering"
    other = ", or config.losses.targets='sinkhorn'" if centred else ""
    return Verdict(
      "collapsing",
      "bad",
      f"{seen}, below {low:.3f}: all images may share one prototype.",
      (
        "Look at teacher_entropy and loss_koleo below, and stop the run if they do not"
        " recover.",
        f"Start again with a lower learning rate, or a higher teacher_temp{other}.",
      ),
    )
  if alarm.is_nothing_learnt(mean, level):
    warmup = run.count("schedules.learning_rate.warmup_steps") or 0
    warming = run.step < 2 * warmup
    return Verdict(
      "nothing learnt yet",
      "watch" if warming else "bad",
      f"{seen}, that of a student whose predictions are uniform ({level:.3f}).",
      (
        f"Wait: the learning rate rises until step {warmup:,}."
        if warming
        else "Try a higher learning rate, or a lower teacher_temp; teacher_entropy at"
        " ln K means targets that say nothing.",
      ),
    )
  if (declined := _decline(run)) is not None:
    return declined
  wait = _recent(run, "data_wait_share", steps)
  if wait is not None and float(np.median(wait)) > alarm.MUCH_WAITING:
    found = run.last_event("input")
    text = found["text"] if found and "text" in found else None
    return Verdict(
      "starved of data",
      "watch",
      f"It learns, but devices wait for images {np.median(wait):.0%} of the time."
      f" {seen}.",
      (
        text
        or "More config.workers, smaller stored images, or fewer crops let the input"
        " keep up.",
      ),
    )
  advice = tuple(_below_pixels(run))
  return Verdict(
    "healthy",
    "watch" if advice else "good",
    f"{seen}, between collapse (below {low:.3f}) and nothing learnt ({level:.3f}).",
    advice,
  )


def _of_features(run) -> Verdict:
  """Whether a student that is distilled by features comes near its teacher's."""
  image, patches = run.value("loss_image"), run.value("loss_patches")
  seen = (
    f"The distance to the teacher's features is {image:.3f} for images and"
    f" {patches:.3f} for patches; 1 and more is that of unrelated ones."
  )
  if image > UNRELATED:
    rate = "Wait while the learning rate rises; then try a higher one."
    return Verdict("nothing learnt yet", "watch", seen, (rate,))
  advice = tuple(_below_pixels(run))
  good = Verdict("healthy", "watch" if advice else "good", seen, advice)
  return _decline(run) or good


def _below_pixels(run) -> Iterator[str]:
  """What to do where k-NN of the teacher is not above that of raw pixels."""
  name = next((x for x in run.series if run.baselines(x).get(PIXELS)), None)
  if name is None:
    return
  teacher, pixels = run.value(name), run.baselines(name)[PIXELS]
  if teacher <= pixels:
    yield (
      f"{name} of the teacher is {teacher:.1%}, and of raw pixels {pixels:.1%}: train"
      " longer, or on more images."
    )


def _recent_loss(run) -> tuple[float, int] | None:
  """(mean DINO + iBOT loss, over how many steps) of the alarm's window, or None.

  A run that ended before one window was full is judged by its second half.
  """
  parts = [run.series.get(name) for name in ("loss_dino", "loss_ibot")]
  if None in parts or not run.alarm_window:
    return None
  steps = int(parts[0].steps[-1])
  ended = run.total_steps and steps >= run.total_steps
  window = min(run.alarm_window, steps // 2 if ended else steps)
  dino, ibot = (_recent(run, name, window) for name in ("loss_dino", "loss_ibot"))
  short = window < run.alarm_window and not ended
  if short or len(dino) < MIN_POINTS or len(ibot) < MIN_POINTS:
    return None
  return float(dino.mean() + ibot.mean()), window


def _recent(run, name, steps) -> np.ndarray | None:
  series = run.series.get(name)
  if series is None:
    return None
  return series.values[series.steps > series.steps[-1] - steps]


def _decline(run) -> Verdict | None:
  best = run.best_knn()
  if best is None:
    return None
  name, step, share = best
  last = run.value(name)
  if last >= DECLINE * share:
    return None
  return Verdict(
    "getting worse",
    "bad",
    f"k-NN top-1 fell from {share:.1%} at step {step:,} to {last:.1%}.",
    (
      f"Use the checkpoint of step {step:,}, if config.checkpoint.keep_best kept it;"
      " for the next run, try a lower learning rate, or fewer steps.",
    ),
  )
