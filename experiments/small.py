"""A small ViT on a folder of your own images, sized for a CPU.

Source:    the recipe of vitl14.py at 112 pixels, with a ViT of 2.8 M parameters and a
           head of 1.0 M; GAP feature, Sinkhorn-Knopp targets.
Data:      --config.data.sources=folder:PHOTOS, from some hundred images on.
Hardware:  a CPU, for a first look; one GPU, for real runs with more steps.
"""

from experiments import vitl14

STEPS = 2_000


def get_config():
  config = vitl14.get_config()
  with config.unlocked():
    config.workdir = "runs/small"
    config.remat = "none"  # activations of so small a network fit
    config.workers = 1
    config.log_every = 10
    config.checkpoint.every = 250
    config.backbone.update(
      pos_grid=8,
      width=192,
      depth=6,
      heads=3,
      pool="gap",
      drop_path=0.0,
      layerscale_init=1.0,  # 1e-5 would spend this short run on waking the blocks up
      dtype="float32",  # CPUs emulate bfloat16
    )
    # vitl14's head alone has 23 M parameters.
    config.heads.dino.update(hidden=512, bottleneck=128, prototypes=4_096)
    config.losses.targets = "sinkhorn"
    config.total_steps = STEPS
    config.schedules.learning_rate.update(peak=1e-3, warmup_steps=STEPS // 10)
    config.schedules.teacher_temp.update(final=0.06, warmup_steps=STEPS // 4)
    config.optimizer.update(layer_decay=1.0, freeze_prototypes_steps=STEPS // 100)
    config.data.update(sources=("folder:data/photos",), batch_size=64)
    for crop in (config.augment.global1, config.augment.global2):
      crop.size = 112
    config.augment.local.size = 56
    config.augment.num_local = 4
    # For labelled folders set train, test and every.
    config.knn.update(every=0, resize=128, crop=112, ks=(10, 20), batch_size=256)
    config.alarm_window = 100
  return config
