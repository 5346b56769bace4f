"""DINOv3's ViT-S/16 from scratch on ImageNet-1k, by the recipe of vitl16_dinov3.py.

Source:    the network of the released ViT-S/16, which is distilled from ViT-7B/16.
Hardware:  8 accelerators; or one with a smaller config.data.batch_size, a multiple of
           config.group_size.
Expected:  not yet measured.
"""

from experiments import vitl16_dinov3


def get_config():
  config = vitl16_dinov3.get_config()
  with config.unlocked():
    config.workdir = "runs/vits16_dinov3"
    config.backbone.update(width=384, depth=12, heads=6, drop_path=0.1)
  return config
