"""Trainee: a network that a run trains, with its folder, checkpoints and log.

A run has one; a distillation has one for each student. All processes make every call
together.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from dinojax import assembly, checkpoint, errors, introduction, losses
from dinojax.data import mixture
from dinojax.evals import dense, knn
from dinojax.pages import live_page
from dinojax.pictures import training
from dinojax.reporting import console, run_log
from dinojax.runtime import watchdog, workdir


class Trainee:
  """A network of a run: restores, logs, rates and saves it."""

  def __init__(
    self,
    name: str,
    run: assembly.Assembly,
    *,
    data: mixture.Mixture,
    teacher_fingerprint: str | None,
    stack: contextlib.ExitStack,
  ):
    """Takes its folder into possession, and opens the checkpoints there.

    Args:
      name: of the student; "" of the only network.
      run: what its training is made of.
      data: that is trained on.
      teacher_fingerprint: of a distillation's teacher.
      stack: closes all at the end.

    Raises:
      UserError: the folder cannot be written to, or another run is at work there.
    """
    self.name, self.run, self.config = name, run, run.student.cfg
    self._label = f"{name}: " if name else ""
    self._data, self._stack = data, stack
    self._folder = workdir.Workdir(self.config, data.fingerprints, teacher_fingerprint)
    stack.enter_context(self._folder.owned())
    self._record: dict | None = None
    self.checkpoints = checkpoint.Checkpoints(
      self.config.workdir, **self.config.checkpoint
    )
    stack.callback(self.checkpoints.close)

  def restore(self, upto: int | None) -> Any | None:
    """The state of its newest checkpoint, at most of step `upto`; None without one."""
    restored = self.checkpoints.restore(
      self.run.abstract_state, check=self._folder.check, upto=upto
    )
    state, self._record = restored or (None, None)
    return state

  def open(
    self,
    start: int,
    *,
    mesh: Mesh,
    evaluation: knn.Evaluation | None,
    dense_evaluation: dense.Evaluation | None,
    watch: watchdog.Watchdog,
    first: bool,
  ) -> None:
    """Introduces it, and opens its log.

    Args:
      start: completed updates.
      mesh: of the run.
      evaluation: of the run, or None.
      dense_evaluation: likewise.
      watch: which pictures tell that they get on.
      first: whether it is the first of several, which has the bar.
    """
    about = introduction.introduce(
      self.config,
      mesh,
      self._data,
      student=self.run.abstract_state.student,
      start=start,
      record=self._record,
      evaluation=evaluation,
      **dict(name=self.name, first=first),
    )
    self._folder.write_config()
    self.log = self._stack.enter_context(
      open_log(self.config, start, about, name=self.name, bar=first)
    )
    self._evaluation, self._dense = evaluation, dense_evaluation
    self._pictures = training.Recorder(
      self.config, self._data, nets=self.run.nets, mesh=mesh, progress=watch.progress
    )

  def step(self, step: int, state: Any, scalars: dict, input_rate: float) -> None:
    """Notes a completed step, and draws the pictures that are due."""
    self.log.step(step, scalars, input_rate)
    self._pictures.write(step, state.teacher, self.log)

  def rate(self, state: Any, due: Sequence[str], *, linear: bool) -> dict[str, float]:
    """The accuracies of its EMA, by the evaluations that are due."""
    run, found = self.run, {}
    if "knn" in due:
      feature = run.image_feature
      found |= self._evaluation.accuracy(feature, state.teacher, linear=linear)
    if "dense_eval" in due:
      patch_size = run.nets.backbone.patch_size
      found |= self._dense.accuracy(
        run.patch_tokens, state.teacher, patch_size=patch_size
      )
    return found

  def rated(self, step: int, accuracy: dict[str, float]) -> None:
    """Notes the result of `rate`."""
    self.log.write(step, accuracy)
    said = [x.describe(accuracy) for x in (knn, dense) if x.is_in(accuracy)]
    console.say(f"{self._label}step {step}: {'; '.join(said)}")

  def save(
    self, step: int, state: Any, accuracy: dict[str, float] | None, *, force: bool
  ) -> None:
    """Starts to write a checkpoint, after a check that its state is sound."""
    self._folder.check_owned()
    record = {"step": step, **self._folder.record}
    self.checkpoints.save(step, state, record, metrics=accuracy, force=force)
    self.log.saved(step)

  def compare(self, state: Any, init_key: Any, known: dict[str, float] | None) -> None:
    """Prints how its EMA does beside the untrained network and raw pixels."""
    known = {k: x for k, x in (known or {}).items() if k not in dense.REPORTED}
    results = self._evaluation.compare(
      self.run.image_feature,
      *(state.teacher, self.run.init(init_key).teacher),
      linear=self.config.knn.linear,
      known=known or None,
      normalize=self.run.nets.backbone.normalize,
    )
    self.log.compared(results)
    console.print_result(self._label + knn.describe_comparison(results))


class Trainees:
  """All networks of a run. Trees of states, scalars and accuracies are by name."""

  def __init__(
    self,
    run: assembly.Assembly | assembly.Distillation,
    *,
    data: mixture.Mixture,
    teacher_fingerprint: str | None,
    stack: contextlib.ExitStack,
  ):
    """Opens each; arguments as of `Trainee`."""
    known = dict(data=data, teacher_fingerprint=teacher_fingerprint, stack=stack)
    self._all = [Trainee(name, one, **known) for name, one in run.members.items()]

  def start(self, key: jax.Array) -> dict[str, Any]:
    """The states of the newest checkpoint that all have, or those before step 1.

    Later checkpoints of some, which a kill left between two saves, are set aside.

    Args:
      key: of the first weights.

    Raises:
      UserError: they have none in common, and more work would be lost than since the
        last checkpoint.
    """
    upto = self._newest_of_all() if len(self._all) > 1 else None
    while True:
      states = {one.name: one.restore(upto) for one in self._all}
      steps = {0 if state is None else int(state.step) for state in states.values()}
      if steps == {0}:
        return {one.name: one.run.init(key) for one in self._all}
      if len(steps) == 1:
        return {one.name: one.run.complete(states[one.name]) for one in self._all}
      upto = min(steps)

  def _newest_of_all(self) -> int:
    saved = {one.name: one.checkpoints.steps() for one in self._all}
    common = max(set.intersection(*map(set, saved.values())), default=0)
    ahead = {name: steps[-1] for name, steps in saved.items() if steps}
    every = self._all[0].config.checkpoint.every
    if not common and max(ahead.values(), default=0) > every:
      lacking = ", ".join(sorted(saved.keys() - ahead.keys()) or sorted(saved))
      raise errors.UserError(
        f"students have reached steps {ahead}, and there is no checkpoint of {lacking}"
        " to go on with; a student cannot join later: choose another config.workdir, or"
        " bring back its folder"
      )
    return common

  def open(self, start: int, **how: Any) -> None:
    """Introduces all and opens their logs; arguments as of `Trainee.open`."""
    for one in self._all:
      one.open(start, first=one is self._all[0], **how)

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Context in which time counts as waiting for data."""
    with contextlib.ExitStack() as stack:
      for one in self._all:
        stack.enter_context(one.log.waiting())
      yield

  def step(self, step: int, states: dict, scalars: dict, input_rate: float) -> None:
    """Notes a completed step of all."""
    for one in self._all:
      one.step(step, states[one.name], scalars[one.name], input_rate)

  def flush(self) -> None:
    """Checks and writes what is pending; UserError if a scalar is not finite."""
    for one in self._all:
      one.log.flush()

  def rate(self, states: dict, due: Sequence[str], *, linear: bool) -> dict[str, dict]:
    """The accuracies of all; UserError if the images cannot be read.

    Args:
      states: of all.
      due: the evaluations, "knn" and "dense_eval".
      linear: whether "knn" adds the linear probe.
    """
    return {x.name: x.rate(states[x.name], due, linear=linear) for x in self._all}

  def rated(self, step: int, rated: dict[str, dict]) -> None:
    """Notes the result of `rate`."""
    for one in self._all:
      one.rated(step, rated[one.name])

  def save(self, step: int, states: dict, rated: dict, *, force: bool) -> None:
    """Starts to write a checkpoint of all, if all states are sound."""
    for one in self._all:
      one.log.sync()  # refuses a state that is not finite
    for one in self._all:
      one.save(step, states[one.name], rated.get(one.name), force=force)

  def wait(self) -> str:
    """Blocks until all checkpoints are complete; returns their folders, for people."""
    for one in self._all:
      one.checkpoints.wait()
    return ", ".join(str(one.checkpoints.directory) for one in self._all)

  def interrupted(self, status: int) -> None:
    """Notes that a signal ends the run; see `run_log.Log.interrupted`."""
    for one in self._all:
      one.log.interrupted(status)

  def compare(self, states: dict, key: jax.Array, rated: dict) -> None:
    """Prints how each does beside the untrained network and raw pixels."""
    for one in self._all:
      one.compare(states[one.name], key, rated.get(one.name))


def open_log(
  config, start: int, about: dict, *, name: str = "", bar: bool = True
) -> run_log.Log:
  """A network's log from step `start`.

  Args:
    config: of the network.
    start: completed updates.
    about: of `introduction.introduce`.
    name: of the network.
    bar: whether to show the bar.
  """
  heads, level = config.heads, None
  if not (config.distill.teacher and config.distill.kind == "features"):
    level = losses.nothing_learnt(
      dino_prototypes=heads.dino.prototypes,
      ibot_prototypes=heads.get("ibot", heads.dino).prototypes,
    )
  return run_log.Log(
    config.workdir,
    start_step=start,
    total_steps=config.total_steps,
    log_every=config.log_every,
    batch_size=config.data.batch_size,
    alarm_window=config.alarm_window,
    workers=config.workers,
    loggers=config.loggers,
    config=config.to_dict(),
    about=about,
    page=live_page.LivePage(config.workdir),
    nothing_learnt=level,
    name=name,
    bar=bar,
  )
