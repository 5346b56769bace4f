"""Pre-trains a ViT by DINOv2 self-distillation: mesh, data, state, loop.

  python -m dinojax.main --config=experiments/quickstart.py
  python -m dinojax.main --config=FILE --config.data.sources=folder:PHOTOS

Every field of the config can be overridden so. The same command again goes on from the
newest checkpoint in config.workdir; Ctrl-C and SIGTERM save before they end a run.
"""

import contextlib
import functools
import math
import pathlib
import sys

import jax
from absl import flags

from dinojax import assembly, checkpoint, preflight, sharding
from dinojax.commands import cli
from dinojax.data import augment, bad_records, mixture, train_batches
from dinojax.evals import knn
from dinojax.reporting import console, metrics
from dinojax.runtime import interrupts, processes, watchdog

for module in (cli, processes):
  flags.adopt_module_key_flags(module)  # so that --help shows them

# Fields that change no result of training: a run may go on with others. What the data
# are is known by their fingerprint.
FREE_FIELDS = (
  *("workdir", "mesh", "remat", "unroll", "attention", "compiler_options"),
  *("accumulation", "workers", "log_every", "checkpoint", "hang_minutes"),
  *("knn", "alarm_window", "data.sources", "data.max_bad_share"),
  "data.accept_changed",
)


def train(config) -> None:
  """Runs a config from its newest checkpoint, or from the start, to its last step.

  Raises:
    UserError: config, data or workdir will not do, or the run had to end early.
    SystemExit: 128 + signal after Ctrl-C or SIGTERM, when all is saved.
  """
  preflight.check(config, devices=jax.device_count())
  augment.make_multi_crop(**config.augment.to_dict())  # checks its ranges
  mesh = sharding.make_mesh(**config.mesh)
  data = mixture.open_mixture(config.data.sources, config.data.weights)
  run = assembly.assemble(config, mesh)
  feature = functools.partial(assembly.image_feature, run.nets)
  watch = watchdog.Watchdog(config.hang_minutes)
  make_rater = knn.open_rater(
    config.knn, mesh=mesh, workers=config.workers, progress=watch.progress
  )
  rate = make_rater(feature) if make_rater else None
  preflight.check_workdir(config.workdir)
  init_key, step_key = jax.random.split(jax.random.key(config.seed))
  record = {"config": config.to_dict(), "data_fingerprint": data.fingerprints}
  stop = interrupts.Interrupts()

  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    stack.callback(watch.close)
    checkpoints = checkpoint.Checkpoints(config.workdir, **config.checkpoint)
    stack.callback(checkpoints.close)
    restored = checkpoints.restore(
      run.abstract_state,
      check=lambda saved: preflight.check_same_run(saved, **record, free=FREE_FIELDS),
    )
    state = restored[0] if restored else run.init(init_key)
    if config.init.backbone and not restored:
      state = assembly.start_from(config.init.backbone, state, config)
    start = int(state.step)
    introduce(config, mesh, data, run.abstract_state.student, start)
    log = open_log(config, start)
    stack.callback(log.close)
    groups = config.data.batch_size // config.group_size
    positions = sharding.local_positions(mesh, groups)
    batches = train_batches.open_batches(
      config, data, groups=positions, start_step=start
    )
    stack.callback(batches.close)
    monitor = bad_records.Monitor(data, max_bad_share=config.data.max_bad_share)

    train_step = assembly.compile_step(run, config, mesh)
    processes.meet("compiled")  # CPUs wait 30 seconds for each other in a step, no more
    accuracy = None
    for step in range(start + 1, config.total_steps + 1):
      with log.waiting():
        batch = next(batches)
      monitor.update(batch.pop("bad_records"))
      batch = sharding.put_batch(mesh, batch, positions, groups)
      state, scalars = train_step(state, batch, step_key)
      log.step(step, scalars, batches.rate() * config.data.batch_size)
      watch.step_done()

      last = step == config.total_steps
      ending, accuracy = stop.ends(step), None
      if rate and not ending and (last or step % config.knn.every == 0):
        log.flush()
        accuracy = rate(state.teacher)
        log.write(step, accuracy)
        console.say(f"step {step}: {knn.describe(accuracy)}")
      if last or ending or step % config.checkpoint.every == 0:
        log.sync()  # never saves a state that is not finite
        checkpoints.save(
          step, state, {"step": step, **record}, metrics=accuracy, force=last or ending
        )
        watch.progress()
      if ending and not last:
        checkpoints.wait()
        console.say(
          f"interrupted; step {step} is saved in {checkpoints.directory}; the same"
          " command goes on from there"
        )
        sys.exit(stop.exit_code())
    checkpoints.wait()
    console.say(f"done; step {config.total_steps} is saved in {checkpoints.directory}")
    if rate and config.knn.baselines:
      results = {
        "trained teacher": accuracy or rate(state.teacher),
        "same network, untrained": rate(run.init(init_key).teacher),
        "raw pixels": make_rater(assembly.pixel_feature)(None),
      }
      console.say(knn.table(results))


def open_log(config, start):
  """The run's `metrics.Log` from step `start`."""
  heads = config.heads
  ibot = heads.get("ibot", heads.dino)
  return metrics.Log(
    config.workdir,
    start_step=start,
    total_steps=config.total_steps,
    log_every=config.log_every,
    batch_size=config.data.batch_size,
    alarm_window=config.alarm_window,
    workers=config.workers,
    # A uniform student: ln K for DINO, half of it for iBOT, as half the crops count 0.
    nothing_learnt=math.log(heads.dino.prototypes) + math.log(ibot.prototypes) / 2,
  )


def introduce(config, mesh, data, student, start):
  """Says what is about to run, and leaves config.json in the workdir."""
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
    f"{data}; batches of"
    f" {config.data.batch_size}; step {start:,} of {config.total_steps:,};"
    f" workdir {config.workdir}\n"
    "the first step waits for the compiler"
  )
  if jax.default_backend() == "cpu" and config.backbone.dtype == "bfloat16":
    console.say("CPUs emulate bfloat16: --config.backbone.dtype=float32 is faster")
  if jax.process_index() == 0:
    path = pathlib.Path(config.workdir, "config.json")
    path.write_text(config.to_json_best_effort(indent=2))


def main(_) -> None:
  """Joins the other processes, if there are any, and trains."""
  processes.join(saves=True)
  train(cli.CONFIG.value)


if __name__ == "__main__":
  cli.run(main, on_interrupt="ended at once; steps since the last checkpoint are lost")
