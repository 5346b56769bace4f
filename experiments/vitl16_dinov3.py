"""DINOv3's ViT-L/16 from scratch on ImageNet-1k, without its Gram stage.

Source:    DINOv3, the ImageNet-1k configuration of the public code (vitl_im1k_lin834),
           with the network of the released ViT-L/16: 4 registers, no bias of keys, and
           norm_eps=1e-5 instead of 1e-6, so that .pth and Hugging Face files can hold
           it.
Hardware:  32 accelerators; published: 14 hours on 32 H100.
Expected:  82.0% k-NN and 83.5% linear top-1 on ImageNet-1k (published; not reproduced).

Differs from vitl14.py in what follows: rotary positions, two heads without weight norm,
Sinkhorn targets, and KoLeo among the 64 images of one GPU there. Also the base of
vits16_dinov3.py.
"""

from experiments import vitl14


def get_config():
  config = vitl14.get_config()
  with config.unlocked():
    config.workdir = "runs/vitl16_dinov3"
    config.group_size = 64
    config.backbone.update(
      patch_size=16,
      pos_grid=14,
      registers=4,
      positions="rope",
      norm_eps=1e-5,
      qkv_bias="no_key",
    )
    head = dict(hidden=2048, bottleneck=256, prototypes=65_536, weight_norm=False)
    config.heads = dict(dino=dict(head), ibot=dict(head))
    config.losses.targets = "sinkhorn"
    config.augment.local.size = 96

    # The final rate grows with the batch, as the peak does.
    final = 4e-6 * (vitl14.BATCH / 1_024) ** 0.5
    config.schedules.learning_rate.final = final
  return config
