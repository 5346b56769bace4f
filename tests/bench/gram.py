"""What Gram anchoring is worth to patches: a small run continued with it and without.

  python tests/bench/gram.py --out=runs/gram
  python tests/bench/gram.py --out=runs/gram --seeds=0 --steps=400 --more=200

For each seed the quickstart's network trains on scenes of digits by the real command,
stage 1. Two copies of that run then resume for equally many steps: `with_gram` holds
its patches to those of the EMA teacher of an earlier step of stage 1, `without` does
not. Rates are constant throughout, as in DINOv3. Patches of the EMA teachers are then
evaluated by k-NN segmentation of scenes of other digits. Prints mean IoU: mean and
standard deviation over seeds, and the difference to `without`, seed by seed. The same
command resumes where it was ended, and prints what is there so far after each seed.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
SCENES = "embedded:scenes:{}"
SIDE = 48  # pixels of a scene
# The quickstart on windows of scenes, in which digits are as large as in the scene.
SETTINGS = [
  *(f"data.sources={SCENES.format('train')}", "knn.every=0", "backbone.pos_grid=6"),
  *("augment.global1.size=24", "augment.global1.area=(0.15, 0.4)"),
  *("augment.global2.size=24", "augment.global2.area=(0.15, 0.4)"),
  *("augment.local.size=12", "augment.local.area=(0.04, 0.1)"),
  *("schedules.learning_rate.peak=1e-3", "schedules.learning_rate.final=1e-3"),
  *("schedules.weight_decay.start=0.04", "schedules.weight_decay.final=0.04"),
  *("schedules.teacher_momentum.start=0.99", "schedules.teacher_momentum.final=0.99"),
]


def train(folder: pathlib.Path, steps: int, settings: list[str]) -> None:
  """Runs the config to its end, or does nothing if it has ended before."""
  if (folder / "checkpoints" / str(steps)).exists():
    return
  command = [sys.executable, "-m", "dinojax.main", "--config=experiments/quickstart.py"]
  length = [f"total_steps={steps}", f"alarm_window={steps}"]
  settings = [f"workdir={folder}", *length, *SETTINGS, *settings]
  overrides = [f"--config.{setting}" for setting in settings]
  subprocess.run([*command, *overrides], cwd=ROOT, check=True)


def copy(run: pathlib.Path, folder: pathlib.Path) -> None:
  """Copies a run, unless it was copied before; a kill leaves no part of a copy."""
  if folder.exists():
    return
  part = folder.with_name(f"{folder.name}.part")
  shutil.rmtree(part, ignore_errors=True)
  shutil.copytree(run, part)
  part.rename(folder)


def mean_iou(folder: pathlib.Path, step: int, *, crop: int) -> float:
  """Mean IoU in percent of the EMA teacher's patches at a step; evaluated once."""
  results = folder.with_name(f"{folder.name}_{step}_crop={crop}.json")
  if not results.exists():
    command = [sys.executable, "-m", "dinojax.evaluate", f"--checkpoint={folder}"]
    command += [f"--step={step}", "--tasks=knn_segmentation", f"--crop={crop}"]
    command += [f"--{name}={SCENES.format(name)}" for name in ("train", "test")]
    command += ["--workers=0", f"--results={results}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
  return 100 * json.loads(results.read_text())["results"]["knn_segmentation_miou"]


def of_seed(out: pathlib.Path, seed: int, args: argparse.Namespace) -> dict[str, float]:
  """Mean IoU by row of the table, training what is missing."""
  stage1, end = out / "stage1", args.steps + args.more
  every = [f"seed={seed}", f"checkpoint.every={args.teacher}", "checkpoint.keep_last=1"]
  every += [f"checkpoint.keep_steps=({args.teacher}, {args.steps})", *args.set]
  train(stage1, args.steps, every)
  found = {
    f"Gram teacher, step {args.teacher:,}": mean_iou(
      stage1, args.teacher, crop=args.crop
    ),
    f"stage 1, step {args.steps:,}": mean_iou(stage1, args.steps, crop=args.crop),
  }
  gram = [
    f"gram.teacher={stage1}@{args.teacher}",
    f"schedules.gram_weight.final={args.weight}",
    f"schedules.gram_weight.first_step={args.steps}",
    f"schedules.gram_weight.steps={max(args.more // 10, 1)}",
  ]
  for name, settings in (("without", []), ("with_gram", gram)):
    copy(stage1, out / name)
    train(out / name, end, [*every, "extend=True", *settings])
    found[f"{name}, step {end:,}"] = mean_iou(out / name, end, crop=args.crop)
  return found


def spread(values: list[float], sign: str = "") -> str:
  """Mean and standard deviation."""
  deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
  return f"{statistics.mean(values):{sign}.1f}{deviation}"


def table(by_seed: list[dict[str, float]]) -> str:
  """A row a network: mean IoU, difference to `without`, number of seeds."""
  lines = ["| patches of | mean IoU, % | to `without` | seeds |", "|---|---|---|---|"]
  names = list(by_seed[0])
  base = next(name for name in names if name.startswith("without"))
  for name in names:
    values = [found[name] for found in by_seed]
    changes = [found[name] - found[base] for found in by_seed]
    change = "" if name == base else spread(changes, "+")
    lines.append(f"| {name} | {spread(values)} | {change} | {len(values)} |")
  return "\n".join(lines)


def main() -> None:
  """Trains and evaluates what is missing, and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", required=True, help="folder of the runs")
  parser.add_argument("--seeds", default="0,1,2", help="with commas")
  parser.add_argument("--steps", type=int, default=3_000, help="of stage 1")
  parser.add_argument("--more", type=int, default=1_000, help="steps of each copy")
  parser.add_argument("--teacher", type=int, help="step; default half of --steps")
  parser.add_argument("--weight", type=float, default=2.0, help="of the Gram loss")
  parser.add_argument("--crop", type=int, default=SIDE, help="pixels, in evaluation")
  parser.add_argument(
    "--set", nargs="*", default=[], help="more, such as group_size=64"
  )
  args = parser.parse_args()
  args.teacher = args.teacher or args.steps // 2
  if args.steps % args.teacher or args.more < 1:
    sys.exit(f"--teacher={args.teacher} must divide --steps={args.steps}")
  settings = f"steps={args.steps}+{args.more}_teacher={args.teacher}"
  settings += f"_weight={args.weight:g}"
  out = pathlib.Path(args.out).absolute() / "_".join([settings, *args.set])
  by_seed = []
  for seed in map(int, args.seeds.split(",")):
    by_seed.append(of_seed(out / f"seed={seed}", seed, args))
    print(f"\n{table(by_seed)}\n", flush=True)


if __name__ == "__main__":
  main()
