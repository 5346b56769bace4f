"""Pre-training of a ViT by DINOv2 self-distillation: mesh, data, state, loop.

  python -m dinojax.main --config=experiments/quickstart.py
  python -m dinojax.main --config=FILE --config.data.sources=folder:PHOTOS

Every field of the config can be overridden so. The same command resumes from the newest
checkpoint in config.workdir; Ctrl-C and SIGTERM save before they end a run.
"""

import contextlib
import math

import jax
from absl import flags

from dinojax import (
  assembly,
  checkpoint,
  errors,
  losses,
  preflight,
  schedules,
  sharding,
)
from dinojax.commands import cli
from dinojax.data import feed, mixture
from dinojax.evals import knn
from dinojax.reporting import console, metrics
from dinojax.runtime import (
  compiled,
  exits,
  gpu_driver,
  interrupts,
  processes,
  watchdog,
  workdir,
)

for module in (cli, processes):
  flags.adopt_module_key_flags(module)  # so that --help shows them


def train(config) -> None:
  """Runs a config from its newest checkpoint, or from the start, to its last step.

  Raises:
    UserError: config, data or workdir will not do, or the run had to end early.
    SystemExit: 128 + signal after Ctrl-C or SIGTERM, when all is saved.
  """
  preflight.check(config, devices=jax.device_count())
  compiled.keep_programs(config.compilation_cache)
  mesh = sharding.make_mesh(**config.mesh)
  processes.meet("connect")
  sharding.connect(mesh)
  data = mixture.open_mixture(config.data.sources, config.data.weights)
  init_key, step_key = jax.random.split(jax.random.key(config.seed))

  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    watch = watchdog.Watchdog(config.hang_minutes)
    stack.callback(watch.close)
    evaluation = knn.open_evaluation(config, mesh=mesh, progress=watch.progress)
    folder = workdir.Workdir(config, data.fingerprints)
    stack.enter_context(folder.owned())
    stop = interrupts.Interrupts()
    checkpoints = checkpoint.Checkpoints(config.workdir, **config.checkpoint)
    stack.callback(checkpoints.close)
    run = assembly.assemble(config, mesh)
    restored = checkpoints.restore(run.abstract_state, check=folder.check)
    state = restored[0] if restored else run.init(init_key)
    start, end = int(state.step), config.total_steps
    introduce(config, mesh, data, run.abstract_state.student, start)
    if restored and (line := describe_extension(restored[1]["config"], config, start)):
      console.say(line)
    folder.write_config()
    log = open_log(config, start)
    stack.callback(log.close)

    accuracy = None
    if start < end:
      batches = feed.Feed(config, data, mesh=mesh, start_step=start)
      stack.callback(batches.close)
      train_step = run.lower_step().compile()
    for step in range(start + 1, end + 1):
      with log.waiting():
        batch = stop.next(batches)
      if batch is None:
        step -= 1  # saved as it is: a signal has come, and no data
      else:
        state, scalars = train_step(state, batch, step_key)
        log.step(step, scalars, batches.images_per_second())
        watch.step_done()

      last, ending, accuracy = step == end, stop.ends(step), None
      failure = None
      if evaluation and not ending and (last or step % config.knn.every == 0):
        log.flush()
        try:
          accuracy = evaluation.accuracy(
            run.image_feature, state.teacher, linear=last and config.knn.linear
          )
        except errors.UserError as error:  # its images: what is trained is kept
          failure = error
          if jax.process_count() > 1:  # of which others may wait in the evaluation
            raise
        else:
          log.write(step, accuracy)
          console.say(f"step {step}: {knn.describe(accuracy)}")
      ending = ending or failure is not None
      if last or ending or step % config.checkpoint.every == 0:
        log.sync()  # never saves a state that is not finite
        folder.check_owned()
        record = {"step": step, **folder.record}
        checkpoints.save(step, state, record, metrics=accuracy, force=last or ending)
        watch.progress()
      if failure:
        checkpoints.wait()
        raise failure
      if ending and not last:
        checkpoints.wait()
        console.say(
          f"interrupted; step {step} is saved in {checkpoints.directory}; the same"
          " command resumes there"
        )
        exits.exit(stop.exit_code())

    checkpoints.wait()
    console.say(f"done; step {end} is saved in {checkpoints.directory}")
    if evaluation and config.knn.baselines:
      teachers, linear = (state.teacher, run.init(init_key).teacher), config.knn.linear
      console.print_result(
        evaluation.compare(run.image_feature, *teachers, linear=linear, known=accuracy)
      )


def open_log(config, start: int) -> metrics.Log:
  """The run's metrics from step `start`."""
  heads = config.heads
  return metrics.Log(
    config.workdir,
    start_step=start,
    total_steps=config.total_steps,
    log_every=config.log_every,
    batch_size=config.data.batch_size,
    alarm_window=config.alarm_window,
    workers=config.workers,
    nothing_learnt=losses.nothing_learnt(
      dino_prototypes=heads.dino.prototypes,
      ibot_prototypes=heads.get("ibot", heads.dino).prototypes,
    ),
  )


def describe_extension(before: dict, config, start: int) -> str | None:
  """One line if the run is longer, or shorter, than at its checkpoint."""
  old, new = before["total_steps"], config.total_steps
  change = schedules.describe_change(
    schedules.make_schedules(**before["schedules"], total_steps=old),
    schedules.make_schedules(**config.schedules, total_steps=new),
    step=start,
  )
  return None if old == new else f"extended from {old} to {new} steps; {change}"


def introduce(config, mesh, data, student, start: int) -> None:
  """Logs what is about to run."""
  millions = {
    name: sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) / 1e6
    for name, tree in student.items()
  }
  count = jax.process_count()
  devices = (
    f"{mesh.size} x {jax.devices()[0].device_kind} of"
    f" {'one process' if count == 1 else f'{count} processes'}"
  )
  console.say(
    f"backbone {millions['backbone']:,.1f} M parameters, student"
    f" {sum(millions.values()):,.1f} M; {devices} as {dict(mesh.shape)}\n"
    f"{data}; batches of {config.data.batch_size}; step {start:,} of"
    f" {config.total_steps:,}; workdir {config.workdir}"
  )
  for line in preflight.doubts(config) + gpu_driver.doubts():
    console.say(f"warning: {line}")
  if start == config.total_steps:
    console.say(f"complete at step {start}; nothing to train")
    return
  if config.init.backbone and not start:
    console.say(f"student and teacher start from {config.init.backbone}")
  if jax.default_backend() == "cpu" and config.backbone.dtype == "bfloat16":
    console.say("CPUs emulate bfloat16: --config.backbone.dtype=float32 is faster")
  console.say("the first step waits for the compiler")


def main(_) -> None:
  """Joins the other processes, if there are any, and trains."""
  processes.join(saves=True)
  train(cli.CONFIG.value)


if __name__ == "__main__":
  cli.run(main, on_interrupt="ended at once; steps since the last checkpoint are lost")
