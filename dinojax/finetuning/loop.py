"""Training of a fine-tuning: from images to checkpoints, resumed bit for bit.

Batch k depends on the seed and k alone, and so does what step k draws, so a checkpoint
needs no state besides weights and moments.
"""

import contextlib
import dataclasses
import json
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from dinojax import backbone, checkpoint, errors
from dinojax.data import images, labelled_batches, sources
from dinojax.finetuning import assembly, feed, scoring, tasks, tuning
from dinojax.pages import live_page
from dinojax.reporting import console, run_log, throughput
from dinojax.runtime import exits, interrupts, ownership, watchdog, workdir
from dinojax.weights import model, runs


@dataclasses.dataclass(frozen=True)
class Setup:
  """How a run goes, which changes no result; fields are flags.

  workdir: its folder. eval_every: steps between two evaluations, each of which is
  saved. log_every: steps between two lines of metrics. remat: activation checkpointing,
  a key of `blocks.REMAT`. workers: processes that read. hang_minutes: of `Watchdog`.
  max_pixels: larger images are corrupt.
  """

  workdir: str
  eval_every: int
  log_every: int
  remat: str = "none"
  workers: int = 0
  hang_minutes: float = 0.0
  max_pixels: int = images.MAX_PIXELS


class Run:
  """A fine-tuning. All processes make every call together, under `jax.set_mesh`."""

  def __init__(
    self,
    recipe: tuning.Recipe,
    setup: Setup,
    loaded: backbone.Backbone,
    opened: dict[str, sources.Source],
    class_names: tuple[str, ...],
    mesh: Mesh,
  ):
    """Compiles nothing and writes nothing yet.

    Args:
      recipe: what results depend on.
      setup: what they do not.
      loaded: the weights to start from, on `mesh`.
      opened: labelled sources "train", "test" and perhaps "val".
      class_names: by label.
      mesh: of all processes.
    """
    self._recipe, self._setup, self._mesh, self._opened = recipe, setup, mesh, opened
    self._class_names, self._patch_size = class_names, loaded.module.patch_size
    self._made = assembly.assemble(
      recipe, loaded, mesh, classes=len(class_names), remat=setup.remat
    )
    self._layout, self._first = loaded.layout, loaded.params
    self.chosen_on = "val" if "val" in opened else "test"
    self._record = {
      "data_fingerprint": [opened["train"].fingerprint],
      "config": {
        "backbone": {x: getattr(loaded.module, x) for x in model.ARCHITECTURE},
        "knn": {"resize": recipe.resize, "crop": recipe.crop},  # as runs.py reads them
        "finetune": {
          **dataclasses.asdict(recipe),
          "checkpoint": loaded.fingerprint,
          "class_names": list(class_names),
        },
      },
    }

  def train(self) -> dict[int, dict[str, float]]:
    """Trains from the newest checkpoint, or from the start, to the last step.

    Returns:
      The accuracies of the checkpoints that stay, the best and the last, by step: the
      metrics of the task with "test_" in front, and with "val_" where it is given.

    Raises:
      UserError: the workdir is another run's, or images cannot be read.
      SystemExit: 128 + signal after Ctrl-C or SIGTERM, when all is saved.
    """
    setup, end = self._setup, self._recipe.steps
    workdir.probe(setup.workdir, field="workdir")
    with contextlib.ExitStack() as stack:
      self._watch = watchdog.Watchdog(setup.hang_minutes, setting="--hang_minutes")
      stack.callback(self._watch.close)
      self._claim = None
      if jax.process_index() == 0:
        path, label = pathlib.Path(setup.workdir), f"--workdir={setup.workdir}"
        self._claim = stack.enter_context(ownership.owned(path, "run", label=label))
      ranked_by = f"{self.chosen_on}_{tasks.TASKS[self._recipe.task].metrics[0]}"
      kept = dict(keep_last=1, keep_best=1, ranked_by=ranked_by)
      self._saver = checkpoint.Checkpoints(
        setup.workdir, every=setup.eval_every, **kept
      )
      stack.callback(self._saver.close)
      state = self._restore()
      first = int(state.step)
      if first < end:
        self._log = stack.enter_context(self._open_log(first))
        batches = stack.enter_context(contextlib.closing(self._batches(first)))
        state = self._loop(state, first, batches)
      self._saver.wait()
      found = {step: self._accuracies(step) for step in self._saver.steps()}
      if not found[end]:  # a signal came before its evaluation
        found[end] = self._evaluate(state)
      return {step: numbers for step, numbers in found.items() if numbers}

  def _restore(self) -> tuning.State:
    """The state of the newest checkpoint, or the first one."""
    restored = self._saver.restore(self._made.abstract_saved, check=self._check)
    # Where all weights are trained, nothing else keeps those before training.
    first, self._first = self._first, None
    if restored is None:
      return self._made.init(first)
    saved, record = restored
    console.say(
      f"resumes at step {record['step']:,} of --workdir={self._setup.workdir}"
    )
    return self._made.of_saved(saved)

  def _check(self, record: dict) -> None:
    """Raises UserError if the record of a checkpoint is of another run."""
    where = f"--workdir={self._setup.workdir}"
    saved = record["config"].get("finetune")
    if not isinstance(saved, dict):
      raise errors.UserError(
        f"{where} holds a run that is no fine-tuning; choose another --workdir"
      )
    saved = tuning.ADDED | saved
    now = json.loads(json.dumps(self._record["config"]["finetune"]))
    differing = [
      f"{'' if name == 'class_names' else '--'}{name}: {saved.get(name)} there,"
      f" {value} now"
      for name, value in now.items()
      if saved.get(name) != value
    ]
    pair = record["data_fingerprint"][0], self._record["data_fingerprint"][0]
    if changed := workdir.data_difference(*pair):
      differing.append(f"--train: {changed}")
    if differing:
      raise errors.UserError(
        f"{where} holds another run ({'; '.join(differing)}); choose another --workdir,"
        " or remove this one"
      )

  def _loop(self, state: tuning.State, first: int, batches: feed.Feed) -> tuning.State:
    """Trains from step `first` on, evaluates and saves; the last state."""
    stop, end = interrupts.Interrupts(), self._recipe.steps
    for step in range(first + 1, end + 1):
      with self._log.waiting():
        batch = stop.next(batches)
      if batch is None:
        step -= 1  # saved as it is: a signal has come, and no data
      else:
        state, scalars = self._made.step(state, batch)
        self._log.step(step, scalars, batches.images_per_second())
        self._watch.step_done()
      ending, rated = stop.ends(step), None
      due = step == end or step % self._setup.eval_every == 0
      if due and not ending:
        self._log.flush()
        rated = self._evaluate(state)
        self._log.write(step, rated)
        console.say(f"step {step:,}: {describe(rated)}")
      if due or ending:
        self._save(step, state, rated)
      if ending and step < end:
        self._saver.wait()
        console.say(
          f"interrupted; step {step:,} is saved in {self._setup.workdir}; the same"
          " command resumes there"
        )
        self._log.interrupted(stop.exit_code())
        exits.exit(stop.exit_code())
    return state

  def _save(self, step: int, state: tuning.State, rated: dict | None) -> None:
    self._log.sync()  # refuses a state that is not finite
    if self._claim:
      self._claim.check()
    saved, record = self._made.to_saved(state), {"step": step, **self._record}
    self._saver.save(step, saved, record, metrics=rated, force=True)
    self._log.saved(step)
    self._watch.progress()

  def _evaluate(self, state: tuning.State) -> dict[str, float]:
    """The metrics of the task on --val and --test."""
    recipe, found = self._recipe, {}
    for name in ("val", "test"):
      if name in self._opened:
        accuracy = scoring.evaluate(
          recipe.task,
          self._opened[name],
          lambda images: self._made.logits(state, images),
          class_names=self._class_names,
          patch_size=self._patch_size,
          mesh=self._mesh,
          batch_size=recipe.batch_size,
          resize=recipe.resize,
          crop=recipe.crop,
          workers=self._setup.workers,
          description=f"accuracy on --{name}",
          max_pixels=self._setup.max_pixels,
          layout=self._layout,
          progress=self._watch.progress,
        )
        found |= {f"{name}_{top}": x for top, x in accuracy.items()}
    return found

  def _accuracies(self, step: int) -> dict[str, float]:
    """What the checkpoint of a step says of its accuracy; {} if it was not measured."""
    folder = runs.find(pathlib.Path(self._setup.workdir), step)
    return runs.read_record(folder).get("metrics") or {}

  def _open_log(self, first: int) -> run_log.Log:
    setup, recipe = self._setup, self._recipe
    return run_log.Log(
      setup.workdir,
      start_step=first,
      total_steps=recipe.steps,
      log_every=setup.log_every,
      batch_size=recipe.batch_size,
      alarm_window=recipe.steps,
      nothing_learnt=None,
      workers=setup.workers,
      settings=throughput.Settings(workers="--workers", crops=""),
      loggers=(),
      about={
        "finetune": self._record["config"]["finetune"],
        "device": jax.devices()[0].device_kind,
        "mesh": dict(self._mesh.shape),
        "processes": jax.process_count(),
        "data": ", ".join(f"{len(x):,} of {x.where}" for x in self._opened.values()),
      },
      page=live_page.LivePage(setup.workdir),
    )

  def _batches(self, first: int) -> feed.Feed:
    setup, maps = self._setup, None
    if self._recipe.task == "segmentation":
      maps = labelled_batches.Maps(len(self._class_names), self._patch_size)
    return feed.Feed(
      self._opened["train"],
      self._recipe,
      mesh=self._mesh,
      workers=setup.workers,
      max_pixels=setup.max_pixels,
      layout=self._layout,
      start_step=first,
      maps=maps,
    )


def describe(accuracies: dict[str, Any]) -> str:
  """One line: each accuracy by name."""
  return ", ".join(f"{name} {value:.1%}" for name, value in accuracies.items())


def table(
  found: dict[int, dict[str, float]], *, chosen_on: str, task: tasks.Task
) -> str:
  """The accuracies on --test of the checkpoints that stay, a row each.

  Args:
    found: of `Run.train`.
    chosen_on: "val" or "test", by whose first metric the best is chosen.
    task: of the run.
  """
  ranked_by = f"{chosen_on}_{task.metrics[0]}"
  best = max(found, key=lambda step: (found[step][ranked_by], step))
  rows = [("", *task.titles)]
  for step, numbers in sorted(found.items(), reverse=True):
    kinds = ["last"] * (step == max(found))
    kinds += [f"best on --{chosen_on}"] * (step == best)
    shares = [f"{numbers[f'test_{name}']:.1%}" for name in task.metrics]
    rows.append((f"step {step:,}, {' and '.join(kinds)}", *shares))
  width = max(len(name) for name, *_ in rows)
  return "\n".join(f"{name:{width}}{one:>10}{two:>10}" for name, one, two in rows)
