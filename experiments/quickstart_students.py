"""Two small students of the quickstart's network, distilled in one run on two cores.

Source:    the recipe of distill.py at the size of quickstart.py, whose run is the
           teacher; another one with --config.distill.teacher=RUN@STEP.
Hardware:  2 CPU cores, minutes.
Expected:  experiments/README.md, "Distillation".

From a teacher without heads, --config=experiments/quickstart_students.py:features.
"""

from experiments import distill, quickstart

STUDENTS = {
  "narrow": dict(width=48, depth=2, heads=3),
  "wide": dict(width=64, depth=2, heads=2),
}


def get_config(kind="prototypes"):
  """kind: "prototypes", or "features" of a teacher without heads."""
  config = quickstart.get_config()
  with config.unlocked():
    config.workdir = "runs/quickstart_students"
    distill.distil(config, "runs/quickstart", quickstart.get_config(), STUDENTS, kind)
    config.total_steps = 1_000
  return config
