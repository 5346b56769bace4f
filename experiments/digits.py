"""Handwritten digits in small patches, for what patches know; nothing to download.

Source:    the recipe of vitl14.py, shrunk: a ViT of 0.3 M parameters on scikit-learn's
           handwritten digits, 1,347 training and 450 test images of 8x8 pixels.
Hardware:  2 CPU cores, 10 minutes with 5 steps a second where that was measured.
           quickstart.py takes a fifth of that, for the image feature alone.
Expected:  97.1, 97.6 and 97.1% by k-NN (k = 10) with seeds 0, 1 and 2, and 96.7, 97.3
           and 98.2% by a linear probe, where raw pixels have 96.2% and 92.0%. Another
           CPU rounds differently, and had 98.2% by k-NN with seed 0.

What is not shrunk but changed, and why:

* 3,000 steps are few, so LayerScale starts at 3 instead of 1e-5, and the teacher moves
  faster and is sharper from the start.
* Digits are neither coloured nor mirrored, and 16 pixels leave nothing to blur; all
  crops are turned, leant and tilted instead.
* The image feature is the mean patch token.
* Crops show digits larger than they are, so evaluation enlarges them, too: to 17
  pixels, of which it cuts 16. At 16 pixels the teacher of seed 0 has 96.4% by k-NN.

k-NN accuracy of the teacher on the way, seed 1, k = 10: 90.7% at step 1,000, 96.2% at
2,000, 97.6% at 3,000.
"""

from experiments import vitl14

STEPS = 3_000


def get_config():
  config = vitl14.get_config()
  with config.unlocked():
    config.workdir = "runs/digits"
    config.remat = "none"  # activations of so small a network fit
    config.workers = 0  # threads: each evaluation would start processes, for seconds
    config.log_every = 10
    config.checkpoint.update(every=500, keep_last=2)
    config.backbone.update(
      patch_size=4,
      pos_grid=4,
      width=96,
      depth=3,
      heads=3,
      pool="gap",
      drop_path=0.0,
      layerscale_init=3.0,
      dtype="float32",
    )
    config.heads.dino.update(hidden=256, bottleneck=64, prototypes=256)
    config.losses.targets = "sinkhorn"
    config.total_steps = STEPS
    config.schedules.learning_rate.update(peak=2e-3, warmup_steps=200)
    config.schedules.teacher_momentum.start = 0.98
    config.schedules.teacher_temp.update(start=0.02, final=0.02, warmup_steps=1)
    config.optimizer.update(
      layer_decay=1.0, patch_embed_lr_scale=1.0, freeze_prototypes_steps=0
    )
    config.data.update(sources=("embedded:digits:train",), batch_size=64)
    for crop in (
      config.augment.global1,
      config.augment.global2,
      config.augment.local,
    ):
      crop.update(size=16, area=(0.6, 1.0), flip_prob=0.0, grey_prob=0.0)
      crop.jitter.update(brightness=0.2, contrast=0.2, saturation=0.0, hue=0.0)
      crop.blur.prob = 0.0
      crop.geometry.update(rotate=15.0, shear=15.0, perspective=0.15)
      crop.solarize_prob = 0.0
    config.augment.local.update(size=12, area=(0.4, 0.8))
    config.augment.num_local = 2
    config.knn.update(
      train="embedded:digits:train",
      test="embedded:digits:test",
      every=1_000,
      ks=(10, 20),
      resize=17,
      crop=16,
      batch_size=256,
      baselines=True,
      linear=True,
    )
    config.dense_eval.update(
      train="embedded:digits:train", test="embedded:digits:test", crop=16
    )
    config.alarm_window = 400
  return config
