"""A small ViT on CIFAR-10, or on any folder of small labelled images.

Source:    the recipe of vitl14.py at 32 pixels, with a ViT of 2.7 M parameters.
Data:      data/cifar10/{train,test}/CLASS/*.jpg; for others set config.data.sources,
           config.knn.train and config.knn.test.
Hardware:  one GPU; a CPU shows the curves begin to move.
"""

from experiments import vitl14

STEPS = 40_000


def get_config():
  config = vitl14.get_config()
  with config.unlocked():
    config.workdir = "runs/cifar10"
    config.remat = "none"  # activations of so small a network fit
    config.workers = 2
    config.checkpoint.every = 1_000
    config.backbone.update(
      patch_size=4,
      pos_grid=8,
      width=192,
      depth=6,
      heads=3,
      pool="gap",
      drop_path=0.0,
      layerscale_init=1.0,  # 1e-5 would spend this short run on waking the blocks up
    )
    config.heads.dino.update(hidden=1024, bottleneck=128, prototypes=4_096)
    config.losses.targets = "sinkhorn"
    config.total_steps = STEPS
    config.schedules.learning_rate.update(peak=1e-3, warmup_steps=STEPS // 20)
    config.schedules.teacher_temp.update(final=0.06, warmup_steps=STEPS // 4)
    config.optimizer.update(layer_decay=1.0, freeze_prototypes_steps=200)
    config.data.update(sources=("folder:data/cifar10/train",), batch_size=256)
    for crop in (config.augment.global1, config.augment.global2):
      crop.size = 32
    config.augment.local.size = 16
    for crop in (
      config.augment.global1,
      config.augment.global2,
      config.augment.local,
    ):
      crop.blur.update(sigma=(0.1, 1.0), kernel=3)
    config.augment.num_local = 4
    config.knn.update(
      train="folder:data/cifar10/train",
      test="folder:data/cifar10/test",
      every=1_000,
      resize=32,
      crop=32,
      batch_size=1_024,
      baselines=True,
    )
  return config
