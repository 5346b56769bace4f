"""The recipe of cifar10.py for some hours on a CPU: a ViT of 0.8 M parameters.

Source:    cifar10.py, with four blocks of width 128 and 1,024 prototypes.
Data:      data/cifar10/{train,test}/CLASS/*.jpg, as cifar10.py.
Hardware:  2 CPU cores; half an hour for 1,000 steps where they have nothing else to do.
Expected:  with 13 epochs of crops little is final. Ended by total_steps=1200, k-NN of
           the teacher (k = 10) was 36.9, 39.3 and 39.7% at 500, 1,000 and 1,200 steps;
           untrained 28.7, raw pixels 44.8%: so few steps do not pass raw pixels.
"""

from experiments import cifar10

STEPS = 5_000


def get_config():
  config = cifar10.get_config()
  with config.unlocked():
    config.workdir = "runs/cifar10_cpu"
    config.workers = 1
    config.log_every = 10
    config.checkpoint.every = 500
    # CPUs emulate bfloat16.
    config.backbone.update(width=128, depth=4, heads=4, dtype="float32")
    config.heads.dino.update(hidden=512, bottleneck=96, prototypes=1_024)
    config.total_steps = STEPS
    config.schedules.learning_rate.update(peak=2e-3, warmup_steps=400)
    config.schedules.teacher_momentum.start = 0.99
    config.schedules.teacher_temp.update(start=0.04, final=0.04, warmup_steps=1)
    config.optimizer.freeze_prototypes_steps = 0
    config.data.batch_size = 128
    for crop in (
      config.augment.global1,
      config.augment.global2,
      config.augment.local,
    ):
      crop.area = (0.4, 1.0)
      crop.blur.prob = 0.0  # 32 pixels leave little to blur
      crop.geometry.update(rotate=10.0, shear=5.0, perspective=0.1)
    config.augment.local.area = (0.15, 0.4)
    config.augment.num_local = 2
    config.knn.update(every=500, ks=(10, 20))
    config.alarm_window = 500
  return config
