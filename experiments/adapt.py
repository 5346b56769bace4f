"""Released weights, trained on with your own images: DINOv3's ViT-S/16 on one GPU.

Source:    the recipe of vits16_dinov3.py from released weights, with a small learning
           rate, smaller heads, and Gram anchoring to the weights that it starts from.
Data:      --config.data.sources=folder:PHOTOS, 1,000 to 1 M images.
Weights:   --config.init.backbone=PATH, of a ViT-S/16: the .pth, or its Hugging Face
           folder. They are the Gram teacher, too, unless config.gram names another.
Hardware:  one GPU.

The heads start from noise, since no released file has any: the loss falls for long
while they learn. What counts is k-NN on your own labels, beside that of the released
weights at step 0 (`python -m dinojax.evaluate --checkpoint=PATH ...`).

Another network needs its own fields in `backbone`: `python -m dinojax.convert` prints
them.
"""

from experiments import vits16_dinov3

STEPS = 10_000


def get_config():
  config = vits16_dinov3.get_config()
  with config.unlocked():
    config.workdir = "runs/adapt"
    config.workers = 4
    config.group_size = 16
    config.checkpoint.update(every=500, keep_last=2)
    config.init.backbone = "weights/dinov3_vits16"
    # A file of weights that is given on the command line is the Gram teacher, too.
    config.gram.teacher = config.init.get_ref("backbone")
    config.backbone.drop_path = 0.0
    head = dict(hidden=2048, bottleneck=256, prototypes=8_192, weight_norm=False)
    config.heads = dict(dino=dict(head), ibot=dict(head))
    config.total_steps = STEPS
    # A twentieth of the rate from scratch at this batch.
    config.schedules.learning_rate.update(peak=1e-4, final=1e-6, warmup_steps=1_000)
    config.schedules.weight_decay.update(start=0.04, final=0.04)
    config.schedules.teacher_momentum.update(start=0.999, final=1.0)
    config.schedules.teacher_temp.update(start=0.04, final=0.07, warmup_steps=2_000)
    config.schedules.gram_weight.update(start=1.0, final=1.0)
    config.optimizer.freeze_prototypes_steps = 100
    config.data.update(sources=("folder:data/photos",), batch_size=256)
    # For labelled folders set train, test and every.
    config.knn.update(every=0, ks=(10, 20), batch_size=256)
    config.alarm_window = 500
  return config
