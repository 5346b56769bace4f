"""Two small students of the quickstart's network, distilled in one run on two cores.

Source:    the recipe of distill.py at the size of quickstart.py, whose run is the
           teacher; another one with --config.distill.teacher=RUN@STEP.
Hardware:  2 CPU cores, minutes.
Expected:  experiments/README.md, "Distillation".

From a teacher without heads, --config=experiments/quickstart_students.py:features.
"""

from experiments import quickstart

STUDENTS = {
  "narrow": dict(width=48, depth=2, heads=3),
  "wide": dict(width=64, depth=2, heads=2),
}


def get_config(kind="prototypes"):
  """kind: "prototypes", or "features" of a teacher without heads."""
  config, teacher = quickstart.get_config(), quickstart.get_config()
  with config.unlocked():
    config.workdir = "runs/quickstart_students"
    config.distill.update(
      teacher="runs/quickstart",
      kind=kind,
      backbone=teacher.backbone,
      heads=teacher.heads if kind == "prototypes" else {},
      students={name: dict(backbone=fields) for name, fields in STUDENTS.items()},
    )
    config.total_steps = 1_000
    if kind == "features":
      config.augment.num_local = 1  # which it does not see
  return config
