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
  checksums,
  errors,
  preflight,
  resolutions,
  sharding,
  start,
  trainee,
)
from dinojax.commands import cli
from dinojax.data import feed, mixture
from dinojax.evals import dense, knn
from dinojax.reporting import console, loggers
from dinojax.runtime import (
  compiled,
  exits,
  interrupts,
  processes,
  watchdog,
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
    dense_evaluation = dense.open_evaluation(config, mesh=mesh, progress=watch.progress)
    run = assembly.assemble_run(config, mesh)
    guide = start.read_teacher(config, mesh)  # of a distillation
    fingerprint = guide and checksums.digest(guide)
    stop = interrupts.Interrupts()
    trainees = trainee.Trainees(
      run, data=data, teacher_fingerprint=fingerprint, stack=stack
    )
    states = trainees.start(init_key)
    first, end = int(next(iter(states.values())).step), config.total_steps
    trainees.open(
      first,
      mesh=mesh,
      evaluation=evaluation,
      dense_evaluation=dense_evaluation,
      watch=watch,
    )

    state = run.join(states, guide)
    rated = {}
    if first < end:
      batches = feed.Feed(config, data, mesh=mesh, start_step=first)
      stack.callback(batches.close)
      shares = resolutions.shares(config)
      row_of = functools.partial(resolutions.row_of, seed=config.seed, shares=shares)
      train_steps = []  # all before the first step, which shows whether memory suffices
      for row in range(len(shares)):
        train_steps.append(run.lower_step(row).compile())
        watch.progress()
    for step in range(first + 1, end + 1):
      with trainees.waiting():
        batch = stop.next(batches)
      if batch is None:
        step -= 1  # saved as it is: a signal has come, and no data
      else:
        state, scalars = train_steps[row_of(step - 1)](state, batch, step_key)
        states, rate = run.split(state), batches.images_per_second()
        trainees.step(step, states, run.split(scalars), rate)
        watch.step_done()

      last, ending, rated = step == end, stop.ends(step), {}
      failure = None
      every = {name: config[name].every for name in ("knn", "dense_eval")}
      due = [name for name, n in every.items() if n and (last or step % n == 0)]
      if due and not ending:
        trainees.flush()
        try:
          rated = trainees.rate(states, due, linear=last and config.knn.linear)
        except errors.UserError as error:  # its images: what is trained is kept
          failure = error
          if jax.process_count() > 1:  # of which others may wait in the evaluation
            raise
        else:
          trainees.rated(step, rated)
      ending = ending or failure is not None
      if last or ending or step % config.checkpoint.every == 0:
        trainees.save(step, states, rated, force=last or ending)
        watch.progress()
      if failure:
        trainees.wait()
        raise failure
      if ending and not last:
        console.say(
          f"interrupted; step {step} is saved in {trainees.wait()}; the same command"
          " resumes there"
        )
        trainees.interrupted(stop.exit_code())
        exits.exit(stop.exit_code())

    console.say(f"done; step {end} is saved in {trainees.wait()}")
    if evaluation and config.knn.baselines:
      trainees.compare(states, init_key, rated)


def main(_) -> None:
  """Joins the other processes, if there are any, and trains."""
  processes.join(saves=True)
  train(cli.CONFIG.value)


if __name__ == "__main__":
  cli.run(main, on_interrupt="ended at once; steps since the last checkpoint are lost")
