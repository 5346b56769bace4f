"""What each part of the method is worth: the quickstart with one part changed.

  python tests/bench/ablations.py --out=runs/ablations
  python tests/bench/ablations.py --out=runs/ablations --parts=base,no_ibot --seeds=0

Trains each part with each seed by the real command, one after the other, and prints
k-NN accuracy (k = 10) of the teacher at the last step: mean and standard deviation over
seeds, and the difference to `base`. The same command resumes where it was ended, and
prints what is there so far after each run.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
CROPS = ("global1", "global2", "local")
NO_GEOMETRY = [
  f"augment.{crop}.geometry.{amount}=0.0"
  for crop in CROPS
  for amount in ("rotate", "shear", "perspective")
]
PARTS = {
  "base": [],
  "no_dino": ["losses.dino_weight=0.0"],
  "no_ibot": ["losses.ibot_weight=0.0"],
  "no_koleo": ["losses.koleo_weight=0.0"],
  "centering": ["losses.targets=centering"],
  "pool_cls": ["backbone.pool=cls"],
  "no_geometry": NO_GEOMETRY,
  "no_colour": [f"augment.{crop}.jitter.prob=0.0" for crop in CROPS],
  "1_local_crop": ["augment.num_local=1"],
  "4_local_crops": ["augment.num_local=4"],
  "4_registers": ["backbone.registers=4"],
  "learned_positions": ["backbone.positions=learned"],
  "momentum_0.9": ["schedules.teacher_momentum.start=0.9"],
  "momentum_0.98": ["schedules.teacher_momentum.start=0.98"],
  "momentum_0.996": ["schedules.teacher_momentum.start=0.996"],
  "group_of_32": ["group_size=32"],
}


def train(folder: pathlib.Path, settings: list[str]) -> None:
  """Runs a config to its end, or does nothing if it has ended before."""
  command = [sys.executable, "-m", "dinojax.main", "--config=experiments/quickstart.py"]
  settings = [f"workdir={folder}", "knn.baselines=False", *settings]
  overrides = [f"--config.{setting}" for setting in settings]
  subprocess.run([*command, *overrides], cwd=ROOT, check=True)


def accuracy(folder: pathlib.Path, steps: int) -> float | None:
  """k-NN accuracy in percent at the last step; None if the run has not come there."""
  try:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
  except FileNotFoundError:
    return None
  for entry in map(json.loads, lines):
    if entry["step"] == steps and "knn_top1_k10" in entry:
      return 100 * entry["knn_top1_k10"]
  return None


def table(found: dict[str, list[float]]) -> str:
  """A row a part: mean, deviation, difference of means to base, number of seeds."""
  lines = ["| part | k-NN, k = 10 | to base | seeds |", "|---|---|---|---|"]
  means = {part: statistics.mean(values) for part, values in found.items()}
  for part, values in found.items():
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    change = f"{means[part] - means['base']:+.1f}" if "base" in means else ""
    lines.append(f"| {part} | {means[part]:.1f}%{spread} | {change} | {len(values)} |")
  return "\n".join(lines)


def main() -> None:
  """Trains what is missing and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", required=True, help="folder of the runs")
  parser.add_argument("--parts", default=",".join(PARTS), help="some, with commas")
  parser.add_argument("--seeds", default="0,1,2", help="with commas")
  parser.add_argument("--steps", type=int, default=500, help="of each run")
  args = parser.parse_args()
  parts = args.parts.split(",")
  if unknown := set(parts) - set(PARTS):
    sys.exit(f"--parts={unknown.pop()} must be some of {', '.join(PARTS)}")
  out = pathlib.Path(args.out).absolute()
  length = [
    *(f"total_steps={args.steps}", f"knn.every={args.steps}", "knn.ks=(10,)"),
    *(f"checkpoint.every={args.steps}", f"alarm_window={args.steps}"),
  ]
  found = {}
  for seed in args.seeds.split(","):
    for part in parts:
      folder = out / f"steps={args.steps}" / part / f"seed={seed}"
      if accuracy(folder, args.steps) is None:
        train(folder, [*length, f"seed={seed}", *PARTS[part]])
      found.setdefault(part, []).append(accuracy(folder, args.steps))
      print(f"\n{table(found)}\n", flush=True)


if __name__ == "__main__":
  main()
