"""DINOv3's ViT-7B/16, 6.7 B parameters: the first million steps, before its Gram stage.

Source:    DINOv3, the 7B pre-training configuration of the public code.
Hardware:  64 to 256 accelerators of 80 GB or more; published: 256 GPUs.
Expected:  not yet trained.

Planned, not run, by `python -m dinojax.plan --config=experiments/vit7b16_dinov3.py
--topology=...`, steps by roofline:

  v5p:8x8x4  256 TPU v5p as 8 x 32: 36.3 of 95.7 GiB each, 1.65 s a step, 19 days.
  h200:32x8  256 H200 as 32 x 8: 44.2 of 126.9 GiB each, 0.75 s a step, 8.6 days.
  h200:8x8   64 H200 as 8 x 8 with --config.accumulation=4: 49.5 of 126.9 GiB each,
             3.0 s a step, 34 days.

Differs from vitg14.py in what follows. The published run multiplies in 8 bits, this one
in bfloat16.
"""

from experiments import vitg14

BATCH = 4_096
EPOCH = 1_000  # the reference's "official epoch", a unit of time and not of data


def get_config():
  config = vitg14.get_config()
  with config.unlocked():
    config.workdir = "runs/vit7b16_dinov3"
    config.checkpoint.keep_steps = (200_000,)  # for vit7b16_gram.py
    config.mesh.fsdp = 32  # whole axes of a slice of 8x8x4, which 16 are not
    config.backbone.update(
      patch_size=16,
      pos_grid=16,
      width=4096,
      heads=32,
      registers=4,
      pool="cls",
      positions="rope",
      ffn_width=8192,
      norm_eps=1e-5,
      qkv_bias="none",
      local_norm=True,
      rope_rescale=2.0,
    )
    config.heads = dict(
      dino=dict(hidden=8192, bottleneck=512, prototypes=262_144, weight_norm=False),
      ibot=dict(hidden=4096, bottleneck=384, prototypes=98_304, weight_norm=False),
    )

    config.total_steps = 1_000 * EPOCH
    peak = 5e-5 * 4 * (BATCH / 1_024) ** 0.5
    config.schedules.learning_rate.update(
      peak=peak, final=peak, warmup_steps=100 * EPOCH
    )
    config.schedules.weight_decay.final = 0.04
    config.schedules.teacher_momentum.final = 0.994
    config.schedules.teacher_temp.warmup_steps = 100 * EPOCH
    config.optimizer.update(
      b2=0.99, clip_norm=30.0, layer_decay=0.98, freeze_prototypes_steps=5 * EPOCH
    )

    config.data.sources = ("arrayrecord:data/web1689m/*.array_record",)
    config.data.batch_size = BATCH
    for kind, size in (("global1", 256), ("global2", 256), ("local", 112)):
      config.augment[kind].update(size=size, flip_prob=0.0)
      geometry = config.augment[kind].geometry
      geometry.update(rotate=0.0, shear=0.0, perspective=0.0)  # it had none
  return config
