"""ViT-g/14 exactly as published: the DINOv2 recipe on LVD-142M.

Source:    DINOv2 (arXiv:2304.07193), vitg14 configuration of the public code.
Hardware:  written for 64, 128 or 256 accelerators; published: 22,000 A100-hours.
Expected:  83.5% k-NN and 86.5% linear top-1 on ImageNet-1k (published; not reproduced).

Differs from vitg14.py in what follows, and in nothing else.
"""

from experiments import vitg14

BATCH = 3_072
EPOCH = 1_250  # the reference's "official epoch", a unit of time and not of data


def get_config():
  config = vitg14.get_config()
  with config.unlocked():
    config.workdir = "runs/vitg14_dinov2"
    config.group_size = 12  # the images of one GPU there
    config.backbone.pool = "cls"
    for kind in ("global1", "global2", "local"):
      geometry = config.augment[kind].geometry
      geometry.update(rotate=0.0, shear=0.0, perspective=0.0)  # it had none
    config.total_steps = 500 * EPOCH
    config.schedules.learning_rate.update(
      peak=2e-4 * (BATCH / 1_024) ** 0.5, warmup_steps=80 * EPOCH
    )
    config.data.batch_size = BATCH
    config.knn.batch_size = BATCH
  return config
