"""Pre-training of a ViT by DINOv2 self-distillation: mesh, data, state, loop.

  python -m dinojax.main --config=experiments/quickstart.py
  python -m dinojax.main --config=FILE --config.data.sources=folder:PHOTOS

Every field of the config can be overridden so. The same command resumes from the newest
checkpoint in config.workdir; Ctrl-C and SIGTERM save before they end a run.
"""

import contextlib
import functools

import jax
from absl import flags

from dinojax import (
  assembly,
  checkpoint,
  errors,
  introduction,
  losses,
  preflight,
  resolutions,
  sharding,
)
from dinojax.commands import cli
from dinojax.data import feed, mixture
from dinojax.evals import knn
from dinojax.pages import live_page
from dinojax.pictures import training
from dinojax.reporting import console, loggers, run_log
from dinojax.runtime import (
  compiled,
  exits,
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
  loggers.check(config.loggers)
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
    state = run.complete(restored[0]) if restored else run.init(init_key)
    start, end = int(state.step), config.total_steps
    about = introduction.introduce(
      config,
      mesh,
      data,
      student=run.abstract_state.student,
      start=start,
      record=restored and restored[1],
      evaluation=evaluation,
    )
    folder.write_config()
    log = stack.enter_context(open_log(config, start, about))
    pictures = training.Recorder(
      config, data, nets=run.nets, mesh=mesh, progress=watch.progress
    )

    accuracy = None
    if start < end:
      batches = feed.Feed(config, data, mesh=mesh, start_step=start)
      stack.callback(batches.close)
      shares = resolutions.shares(config)
      row_of = functools.partial(resolutions.row_of, seed=config.seed, shares=shares)
      train_steps = []  # all before the first step, which shows whether memory suffices
      for row in range(len(shares)):
        train_steps.append(run.lower_step(row).compile())
        watch.progress()
    for step in range(start + 1, end + 1):
      with log.waiting():
        batch = stop.next(batches)
      if batch is None:
        step -= 1  # saved as it is: a signal has come, and no data
      else:
        state, scalars = train_steps[row_of(step - 1)](state, batch, step_key)
        log.step(step, scalars, batches.images_per_second())
        watch.step_done()
        pictures.write(step, state.teacher, log)

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
        log.saved(step)
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
        log.interrupted(stop.exit_code())
        exits.exit(stop.exit_code())

    checkpoints.wait()
    console.say(f"done; step {end} is saved in {checkpoints.directory}")
    if evaluation and config.knn.baselines:
      teachers, linear = (state.teacher, run.init(init_key).teacher), config.knn.linear
      results = evaluation.compare(
        run.image_feature, *teachers, linear=linear, known=accuracy
      )
      log.compared(results)
      console.print_result(knn.describe_comparison(results))


def open_log(config, start: int, about: dict) -> run_log.Log:
  """The run's log from step `start`. about: of `introduction.introduce`."""
  heads = config.heads
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
    nothing_learnt=losses.nothing_learnt(
      dino_prototypes=heads.dino.prototypes,
      ibot_prototypes=heads.get("ibot", heads.dino).prototypes,
    ),
  )


def main(_) -> None:
  """Joins the other processes, if there are any, and trains."""
  processes.join(saves=True)
  train(cli.CONFIG.value)


if __name__ == "__main__":
  cli.run(main, on_interrupt="ended at once; steps since the last checkpoint are lost")
