"""The high-resolution stage of DINOv3, after vitl16_dinov3.py: crops of 512 and 768.

Source:    DINOv3, the 7B high-resolution configuration of the public code: rows of crop
           sizes and their probabilities, steps, weights of the losses, momentum,
           learning rate, weight decay. The network and the rest of the optimiser are
           those of vitl16_dinov3.py, whose patch features still anchor the new ones.
Hardware:  32 accelerators; an image takes 17 times the FLOPs of vitl16_dinov3.py, by
           planning.costs.model_flops, as a mean over the rows.
           Batches ahead take 43 to 112 GiB of each of 8 hosts, by planning.input_plan,
           as the row is; fewer config.workers take less.
Expected:  not yet trained.

It starts from the teacher of a finished run, heads included, which is the Gram teacher,
too. For a run elsewhere, or one of its checkpoints (RUN@STEP):

  python -m dinojax.main --config=experiments/vitl16_highres.py
  --config.init.run=RUN --config.gram.teacher=RUN
"""

from experiments import vitl16_dinov3

RUN = "runs/vitl16_dinov3"
# DIFFERS: local crops of 160 pixels in place of 168, of which patches of 16 see 160.
ROWS = (
  dict(share=0.30, global_size=512, local_size=112, gram_size=768),
  dict(share=0.30, global_size=768, local_size=112, gram_size=1152),
  dict(share=0.30, global_size=768, local_size=160, gram_size=1152),
  dict(share=0.05, global_size=768, local_size=224, gram_size=1152),
  dict(share=0.05, global_size=768, local_size=336, gram_size=1152),
)


def get_config():
  config = vitl16_dinov3.get_config()
  with config.unlocked():
    config.workdir = "runs/vitl16_highres"
    config.remat = "full"
    config.accumulation = 4
    config.group_size = 16
    config.init.run = RUN
    config.gram.update(teacher=RUN, crop_size=ROWS[0]["gram_size"])

    config.total_steps = 30_000
    rate = 1.25e-5 * 4 * (config.data.batch_size / 1_024) ** 0.5
    config.schedules.learning_rate.update(
      peak=rate, final=rate, warmup_steps=10_000, warmup="cosine"
    )
    config.schedules.weight_decay.final = 0.04
    config.schedules.teacher_momentum.update(start=0.999, final=0.999)
    config.schedules.teacher_temp.update(start=0.07, warmup_steps=0)
    config.schedules.local_weight.update(start=0.5, final=0.5)
    config.schedules.gram_weight.update(start=1.5, final=1.5)
    config.optimizer.freeze_prototypes_steps = 0

    for kind in ("global1", "global2"):
      config.augment[kind].size = ROWS[0]["global_size"]
    config.augment.local.size = ROWS[0]["local_size"]
    config.resolutions = ROWS
  return config
