"""Flags of fine-tuning, in a process of their own: `evaluate` has such names, too."""

import json
import pathlib
import subprocess
import sys

import children
import pytest

ROOT = pathlib.Path(__file__).parents[2]
CASES = [
  ("all", 1024, 256, 1e-4),
  ("all", 128, 256, 8e-4),
  ("all", 128, 64, 4e-4),
  ("head", 384, 256, 8e-3),
]
SHOW = """
import json, sys
from absl import flags
from dinojax.commands import finetune_flags
from dinojax.finetuning import tuning

rates = []
for tune, width, batch_size in json.loads(sys.argv[1]):
  flags.FLAGS(["finetune", f"--tune={tune}"])
  rates.append(finetune_flags.learning_rate(width=width, batch_size=batch_size))
ways = [tuning.WAYS, finetune_flags.WAYS]
ways += [finetune_flags.LEARNING_RATES, finetune_flags.HEAD_LR_SCALES]
print(json.dumps([rates, [sorted(x) for x in ways]]))
"""


@pytest.mark.process
def test_each_way_has_rates_that_fall_with_width_and_rise_with_the_batch():
  done = subprocess.run(
    [sys.executable, "-c", SHOW, json.dumps([case[:3] for case in CASES])],
    cwd=ROOT,
    env=children.environment(1),
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  rates, (ways, *others) = json.loads(done.stdout)
  assert rates == [case[3] for case in CASES]
  assert ways and others == [ways] * 3
