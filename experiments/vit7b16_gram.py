"""The Gram stage of vit7b16_dinov3.py: its run resumes here, in the same folder.

Source:    DINOv3, the gram_anchor configuration of the public code: 200,000 steps more,
           at a smaller constant rate and with a slower teacher.
Hardware:  that of vit7b16_dinov3.py, with longer steps: the Gram teacher sees the
           global crops at 512 pixels.
Expected:  not yet trained.

The first Gram teacher is that run's checkpoint of step 200,000, which it keeps; the EMA
teacher takes its place three times.
"""

from experiments import vit7b16_dinov3

START = 1_000 * vit7b16_dinov3.EPOCH


def get_config():
  config = vit7b16_dinov3.get_config()
  with config.unlocked():
    config.extend = True
    config.total_steps = START + 200_000
    rate = 3e-5 * 4 * (vit7b16_dinov3.BATCH / 1_024) ** 0.5
    config.schedules.learning_rate.update(peak=rate, final=rate)
    config.schedules.teacher_momentum.update(start=0.999, final=0.999)
    config.schedules.local_weight.update(final=0.5, first_step=START, steps=1_000)
    config.schedules.gram_weight.update(final=2.0, first_step=START, steps=1_000)
    config.gram.update(
      teacher=f"{config.workdir}@200000",
      crop_size=512,
      refresh_steps=tuple(START + step for step in (10_000, 20_000, 30_000)),
    )
  return config
