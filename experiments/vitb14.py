"""ViT-B/14 from scratch on ImageNet-1k, by the recipe of vitl14.py.

Hardware:  8 accelerators, or fewer with a smaller config.data.batch_size.
Expected:  not yet measured; the published 82.1% k-NN is distilled from ViT-g/14.
"""

from experiments import vitl14


def get_config():
  config = vitl14.get_config()
  with config.unlocked():
    config.workdir = "runs/vitb14"
    config.backbone.update(width=768, depth=12, heads=12)
  return config
