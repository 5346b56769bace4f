"""Satellite images of 13 bands: a small ViT on Sentinel-2 patches of 64 x 64 pixels.

Source:    the recipe of vitl14.py at 64 pixels in patches of 8, with a ViT of 2.8 M
           parameters; GAP feature, Sinkhorn-Knopp targets.
Data:      data/eurosat/{train,test}/CLASS/*.tif, 13 bands of uint16: EuroSAT's "all
           bands", split by you. pip install 'dinojax[channels]' reads TIFF.
Hardware:  one GPU; a CPU for a first look with fewer steps.
Expected:  not yet measured.

Other bands or sensors: `python -m dinojax.measure --images=folder:PATH
--max_value=10000` prints the fields of BANDS for them. What differs from a recipe for
photographs, besides:

* Values are reflectance times 10,000, which becomes 1. The darkest band, cirrus, has a
  mean of 12 of these, so 8 bits would lose it: crops stay uint16.
* There is no up or down: crops are turned by quarters and mirrored.
* Only brightness and contrast change. Saturation, hue, grey and solarizing need RGB,
  and are off in any case; here they are 0, or the start would say so.
* With config.init.backbone=WEIGHTS, of RGB in patches of 8 and the same width, RGB
  places red, green and blue among the bands: --config.init.rgb='(3, 2, 1)'.
"""

from experiments import vitl14

STEPS = 20_000
# EuroSAT's B1 to B8, B9 to B12, B8A in the order of its files: mean and deviation as
# TorchGeo publishes them, over 10,000.
BANDS = dict(
  mean=(
    *(0.135441, 0.111824, 0.104293, 0.0947626, 0.119947, 0.199979, 0.236922),
    *(0.22968, 0.0732082, 0.00121133, 0.181901, 0.111892, 0.259411),
  ),
  std=(
    *(0.0245718, 0.0333008, 0.0395092, 0.0593751, 0.0566417, 0.0861184, 0.108663),
    *(0.111798, 0.040492, 0.000477584, 0.100259, 0.076130, 0.123159),
  ),
  image_dtype="uint16",
  max_value=10_000.0,
)
RGB = (3, 2, 1)  # B4, B3, B2


def get_config():
  config = vitl14.get_config()
  with config.unlocked():
    config.workdir = "runs/satellite"
    config.workers = 4
    config.log_every = 50
    config.checkpoint.every = 1_000
    config.backbone.update(
      patch_size=8,
      pos_grid=8,
      width=192,
      depth=6,
      heads=3,
      pool="gap",
      drop_path=0.0,
      layerscale_init=1.0,
      **BANDS,
    )
    config.heads.dino.update(hidden=512, bottleneck=128, prototypes=4_096)
    config.losses.targets = "sinkhorn"
    config.total_steps = STEPS
    config.schedules.learning_rate.update(peak=1e-3, warmup_steps=STEPS // 10)
    config.schedules.teacher_temp.update(final=0.06, warmup_steps=STEPS // 4)
    config.optimizer.update(layer_decay=1.0, freeze_prototypes_steps=STEPS // 100)
    config.data.update(
      sources=("folder:data/eurosat/train",), batch_size=256, channels=13
    )
    for crop in (
      config.augment.global1,
      config.augment.global2,
      config.augment.local,
    ):
      crop.update(size=64, grey_prob=0.0, solarize_prob=0.0)
      crop.jitter.update(brightness=0.2, contrast=0.2, saturation=0.0, hue=0.0)
      crop.geometry.dihedral = True
    config.augment.local.size = 32
    config.augment.num_local = 4
    config.knn.update(
      train="folder:data/eurosat/train",
      test="folder:data/eurosat/test",
      every=1_000,
      ks=(10, 20),
      resize=72,
      crop=64,
      batch_size=256,
      baselines=True,
    )
    config.dense_eval.crop = 64
    config.alarm_window = 500
  return config
