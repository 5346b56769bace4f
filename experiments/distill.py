"""ViT-S/14, B/14 and L/14 distilled in one run from the ViT-g/14 that vitg14.py trains.

Source:    DINOv2 (arXiv:2304.07193, section 5): the student's loop with a frozen
           teacher, whole crops, no drop path; the EMA of the student is kept. DINOv3
           trains several students at once; here they share the teacher's forward pass.
Teacher:   --config.distill.teacher=RUN@STEP, of this architecture. The heads of the
           students have its numbers of prototypes. Released weights have no heads:
           --config=experiments/distill.py:features learns from what they see instead.
Data:      as of vitg14.py: --config.data.sources=...
Hardware:  128 accelerators, or fewer with a smaller config.data.batch_size.
Result:    each student in its own folder, runs/distill/small and so on, which is like
           that of any run: for `evaluate`, `embed`, `convert`, `report` and
           config.init.run.
Cost:      60% of the FLOPs of three runs that distil one each, 51% by features: what
           `python -m dinojax.plan` prints as needed by the method.
"""

from experiments import vitg14

STUDENTS = {
  "small": dict(width=384, depth=12, heads=6),
  "base": dict(width=768, depth=12, heads=12),
  "large": dict(width=1024, depth=24, heads=16),
}


def get_config(kind="prototypes"):
  """kind: "prototypes", or "features" of a teacher without heads."""
  config = vitg14.get_config()
  with config.unlocked():
    config.workdir = "runs/distill"
    distil(config, "runs/vitg14", vitg14.get_config(), STUDENTS, kind)
    config.backbone.update(**STUDENTS["small"], ffn="mlp", drop_path=0.0)
  return config


def distil(config, teacher, teacher_config, students, kind):
  """Has a config distil students, backbone fields by name, from a run of another."""
  config.distill.update(
    teacher=teacher,
    kind=kind,
    backbone=teacher_config.backbone,
    heads=teacher_config.heads if kind == "prototypes" else {},
    students={name: dict(backbone=fields) for name, fields in students.items()},
  )
  if kind == "features":
    config.augment.num_local = 1  # which it does not see
