r"""Fine-tunes a backbone for a task of your own: its head, low-rank updates, or all.

  python -m dinojax.finetune --checkpoint=runs/vits14 --tune=lora \
    --train=folder:PETS/train --test=folder:PETS/test --workdir=runs/pets

--checkpoint is any weights that evaluate takes. --task: one class for each image, any
number, or one for each pixel. The best weights and the last ones stay in --workdir,
with a page of their curves. The same command resumes from the newest there; Ctrl-C and
SIGTERM save before they end a run. `classifier.load` and `backbone.load` read them.
"""

import contextlib

import jax
from absl import flags

from dinojax import backbone, errors, sharding
from dinojax.commands import backbone_flags, cli, finetune_flags
from dinojax.finetuning import loop, opening, tasks, tuning
from dinojax.reporting import console
from dinojax.runtime import compiled, processes

for module in (backbone_flags, finetune_flags, processes):
  flags.adopt_module_key_flags(module)


def image_feature(loaded: backbone.Backbone) -> dict[str, str | int]:
  """The "feature" and "layers" that the head sees; UserError if it sees patches."""
  if finetune_flags.TASK.value != "segmentation":
    return {
      "feature": backbone_flags.feature(loaded),
      "layers": backbone_flags.LAYERS.value,
    }
  for flag in (backbone_flags.FEATURE, backbone_flags.LAYERS):
    if flag.value != flag.default:
      raise errors.UserError(
        f"--{flag.name}={flag.value} is of an image's feature, and --task=segmentation"
        " reads the patches of the last block; leave it out"
      )
  return {"feature": "patches", "layers": 1}


def make_recipe(loaded: backbone.Backbone, *, devices: int) -> tuning.Recipe:
  """What a result depends on, by the flags; UserError if it does not suit the network.

  Args:
    loaded: the backbone.
    devices: that share a batch.
  """
  size = backbone_flags.batch_size(devices)
  return tuning.Recipe(
    **finetune_flags.recipe(width=loaded.module.width, batch_size=size),
    **backbone_flags.image_sizes(loaded),
    **image_feature(loaded),
    dtype=loaded.module.dtype,
  )


def main(_) -> None:
  """Opens sources and weights, trains, and prints the accuracies."""
  processes.join(saves=True)
  finetune_flags.check()
  with contextlib.closing(backbone_flags.open_watchdog()) as watch:
    opened, class_names = opening.open_sources(
      finetune_flags.TASK.value,
      finetune_flags.sources_given(),
      workers=backbone_flags.WORKERS.value,
      progress=watch.step_done,
    )
  compiled.keep_programs("auto")
  mesh = sharding.make_mesh(data=sharding.slice_count(), fsdp=-1)
  processes.meet("connect")
  sharding.connect(mesh)
  with jax.set_mesh(mesh):
    loaded = backbone_flags.load(mesh)
    recipe = make_recipe(loaded, devices=mesh.size)
    setup = loop.Setup(
      **finetune_flags.setup(),
      workers=backbone_flags.WORKERS.value,
      hang_minutes=backbone_flags.HANG_MINUTES.value,
    )
    console.say(
      f"trains {finetune_flags.WAYS[recipe.tune]}, on"
      f" {len(opened['train']):,} images of {len(class_names):,} classes, for"
      f" {recipe.steps:,} steps of {recipe.batch_size} images of {recipe.crop} pixels,"
      f" with --learning_rate={recipe.learning_rate:g}"
    )
    run = loop.Run(recipe, setup, loaded, opened, class_names, mesh)
    del loaded  # a run that trains all weights does not keep them as they were
    found = run.train()
  task = tasks.TASKS[recipe.task]
  console.print_result(loop.table(found, chosen_on=run.chosen_on, task=task))
  console.say(f"done; classifier.load({setup.workdir!r}) takes the last step")


if __name__ == "__main__":
  cli.run(
    main,
    on_interrupt="ended at once; steps since the last checkpoint are lost",
    config=False,
  )
