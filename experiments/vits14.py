"""ViT-S/14 from scratch on ImageNet-1k, by the recipe of vitl14.py.

Hardware:  8 accelerators; one of 141 GB with config.accumulation=8; or one with a
           smaller config.data.batch_size.
Expected:  not yet measured; the published 79.0% k-NN is distilled from ViT-g/14.
"""

from experiments import vitl14


def get_config():
  config = vitl14.get_config()
  with config.unlocked():
    config.workdir = "runs/vits14"
    config.backbone.update(width=384, depth=12, heads=6, drop_path=0.1)
  return config
