"""ViT-L/14 from scratch on ImageNet-1k: one shared head and centred targets.

Source:    DINOv2 (arXiv:2304.07193), the "short" ViT-L/16 configuration of the public
           code, at patch size 14.
Hardware:  written for 32 accelerators.
Expected:  81.6% k-NN and 82.9% linear top-1 on ImageNet-1k (published at patch size 16;
           not yet reproduced).

Also the base of vitb14.py and vits14.py, which change the width and depth alone.
"""

from experiments import vitg14

BATCH = 2_048
EPOCH = 1_250  # the reference's "official epoch", a unit of time and not of data


def get_config():
  config = vitg14.get_config()
  with config.unlocked():
    config.workdir = "runs/vitl14"
    config.mesh.update(data=1, fsdp=-1)
    config.remat = "matmuls"  # "none" holds twice as much, and is slower on GPUs
    config.backbone.update(
      width=1024, depth=24, heads=16, ffn="mlp", pool="cls", drop_path=0.3
    )
    # No `ibot` head: one head for image and patches.
    config.heads = dict(dino=dict(hidden=2048, bottleneck=256, prototypes=65_536))
    config.losses.targets = "centering"
    for kind in ("global1", "global2", "local"):
      geometry = config.augment[kind].geometry
      geometry.update(rotate=0.0, shear=0.0, perspective=0.0)  # it had none

    config.total_steps = 100 * EPOCH
    config.schedules.learning_rate.update(
      peak=4e-3 * (BATCH / 1_024) ** 0.5, warmup_steps=10 * EPOCH
    )
    config.schedules.weight_decay.final = 0.4
    config.schedules.teacher_momentum.start = 0.992
    config.schedules.teacher_temp.warmup_steps = 30 * EPOCH
    config.optimizer.layer_decay = 0.9

    config.data.sources = ("tfds:imagenet2012:train",)
    config.data.batch_size = BATCH
    config.knn.every = 5_000
  return config
