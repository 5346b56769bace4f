"""What a teacher is worth to small students: distilled, beside trained alone.

  python tests/bench/distillation.py --out=runs/distillation

Trains digits.py as teacher, or takes --teacher=RUN@STEP. Then with each seed, by
the real command and for equal steps: both students together by prototypes, both by
features, and each alone by the recipe of digits.py. Prints k-NN accuracy (k = 10)
and that of a linear probe at the last step, mean and standard deviation over seeds. The
same command resumes where it was ended.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # before experiments, which is no installed package
from experiments import digits_students  # noqa: E402

RESULTS = {"k-NN": "knn_top1_k10", "linear": "linear"}
RECIPE = "experiments/digits_students.py"


def train(folder: pathlib.Path, config: str, settings: list[str]) -> None:
  """Runs a config to its end, or does nothing if it has ended before."""
  settings = [f"workdir={folder}", "knn.baselines=False", *settings]
  overrides = [f"--config.{setting}" for setting in settings]
  command = [sys.executable, "-m", "dinojax.main", f"--config={config}"]
  subprocess.run([*command, *overrides], cwd=ROOT, check=True)


def results(folder: pathlib.Path, steps: int) -> dict[str, float] | None:
  """Accuracies in percent at the last step; None if the run has not come there."""
  try:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
  except FileNotFoundError:
    return None
  for entry in map(json.loads, lines):
    if entry["step"] == steps and "linear" in entry:
      return {name: 100 * entry[key] for name, key in RESULTS.items()}
  return None


def table(found: dict[tuple[str, str], list[dict[str, float]]]) -> str:
  """A row for each student and way: mean and deviation of each result."""
  lines = [
    "| student | taught | k-NN, k = 10 | linear | seeds |",
    "|---|---|---|---|---|",
  ]
  for (student, way), runs in sorted(found.items()):
    cells = []
    for name in RESULTS:
      values = [run[name] for run in runs]
      spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
      cells.append(f"{statistics.mean(values):.1f}%{spread}")
    lines.append(f"| {student} | {way} | {' | '.join(cells)} | {len(runs)} |")
  return "\n".join(lines)


def main() -> None:
  """Trains what is missing and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", required=True, help="folder of the runs")
  parser.add_argument("--teacher", help="a run of digits.py; default: trains it")
  parser.add_argument("--seeds", default="0,1,2", help="with commas")
  parser.add_argument("--steps", type=int, default=1_000, help="of each student")
  args = parser.parse_args()
  out = pathlib.Path(args.out).absolute()
  teacher = args.teacher
  if not teacher:
    teacher = str(out / "teacher")
    train(out / "teacher", "experiments/digits.py", [])
  length = [
    *(f"total_steps={args.steps}", f"knn.every={args.steps}", "knn.ks=(10,)"),
    *(f"checkpoint.every={args.steps}", f"alarm_window={args.steps}"),
  ]
  found = {}
  for seed in args.seeds.split(","):
    common = [*length, f"seed={seed}"]
    for kind in ("prototypes", "features"):
      folder = out / f"steps={args.steps}" / f"by {kind}" / f"seed={seed}"
      if any(
        results(folder / name, args.steps) is None for name in digits_students.STUDENTS
      ):
        train(folder, f"{RECIPE}:{kind}", [*common, f"distill.teacher={teacher}"])
      for name in digits_students.STUDENTS:
        row = found.setdefault((name, f"by {kind}"), [])
        row.append(results(folder / name, args.steps))
    for name, fields in digits_students.STUDENTS.items():
      folder = out / f"steps={args.steps}" / f"{name} alone" / f"seed={seed}"
      if results(folder, args.steps) is None:
        own = [f"backbone.{field}={value}" for field, value in fields.items()]
        train(folder, "experiments/digits.py", [*common, *own])
      row = found.setdefault((name, "alone"), [])
      row.append(results(folder, args.steps))
    print(f"\n{table(found)}\n", flush=True)


if __name__ == "__main__":
  main()
