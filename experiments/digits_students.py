"""Two small students of the network of digits.py, distilled in one run on two cores.

Source:    the recipe of distill.py at the size of digits.py, whose run is the
           teacher; another one with --config.distill.teacher=RUN@STEP.
Hardware:  2 CPU cores, minutes.
Expected:  experiments/README.md, "Distillation".

From a teacher without heads, --config=experiments/digits_students.py:features.
"""

from experiments import digits, distill

STUDENTS = {
  "narrow": dict(width=48, depth=2, heads=3),
  "wide": dict(width=64, depth=2, heads=2),
}


def get_config(kind="prototypes"):
  """kind: "prototypes", or "features" of a teacher without heads."""
  config = digits.get_config()
  with config.unlocked():
    config.workdir = "runs/digits_students"
    distill.distil(config, "runs/digits", digits.get_config(), STUDENTS, kind)
    config.total_steps = 1_000
  return config
