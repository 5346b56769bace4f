"""What Gram anchoring is worth to patches: a run continued with it and without it.

  python tests/bench/gram.py --out=runs/gram
  python tests/bench/gram.py --out=runs/gram --seeds=0 --steps=400 --more=200

For each seed `digits.py` trains by the real command, stage 1. Two copies of that run
then resume for equally many steps: `with Gram` holds its patches to those of the EMA
teacher of an earlier step of stage 1, `without` does not. Schedules are constant
throughout, as in DINOv3. Patches of the EMA teachers are then evaluated by k-NN
segmentation of other digits. Prints mean IoU: mean and standard deviation over seeds,
of the values and of their differences to `without`. The same command resumes where it
was ended, and prints what is there so far after each seed.

  --images=embedded:scenes --crop=48   evaluates on scenes of several digits instead
"""

import argparse
import functools
import json
import pathlib
import shutil
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
CONSTANT = [
  *("schedules.learning_rate.peak=1e-3", "schedules.learning_rate.final=1e-3"),
  *("schedules.weight_decay.start=0.04", "schedules.weight_decay.final=0.04"),
  "schedules.teacher_momentum.final=0.98",
]


def train(folder: pathlib.Path, steps: int, settings: list[str]) -> None:
  """Runs the config to its end, or does nothing if it has ended before."""
  if (folder / "checkpoints" / str(steps)).exists():
    return
  command = [sys.executable, "-m", "dinojax.main", "--config=experiments/digits.py"]
  length = [f"total_steps={steps}", f"alarm_window={steps}", "knn.every=0"]
  settings = [f"workdir={folder}", *length, *CONSTANT, *settings]
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


def mean_iou(folder: pathlib.Path, step: int, *, images: str, crop: int) -> float:
  """Mean IoU in percent of the EMA teacher's patches at a step; evaluated once."""
  stage = images.replace(":", "_")
  results = folder.with_name(f"{folder.name}_{step}_{stage}_{crop}.json")
  if not results.exists():
    command = [sys.executable, "-m", "dinojax.evaluate", f"--checkpoint={folder}"]
    command += [f"--step={step}", "--tasks=knn_segmentation", f"--crop={crop}"]
    command += [f"--{name}={images}:{name}" for name in ("train", "test")]
    command += ["--workers=0", f"--results={results}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
  return 100 * json.loads(results.read_text())["results"]["knn_segmentation_miou"]


def of_seed(out: pathlib.Path, seed: int, args: argparse.Namespace) -> dict[str, float]:
  """Mean IoU by row of the table; trains what is missing."""
  stage1, end = out / "stage1", args.steps + args.more
  common = [f"seed={seed}", "checkpoint.keep_last=1"]
  common += [f"checkpoint.every={args.teacher}", *args.set]
  common += [f"checkpoint.keep_steps=({args.teacher},)"]
  train(stage1, args.steps, common)
  iou = functools.partial(mean_iou, images=args.images, crop=args.crop)
  found = {
    f"Gram teacher, step {args.teacher:,}": iou(stage1, args.teacher),
    f"stage 1, step {args.steps:,}": iou(stage1, args.steps),
  }
  gram = [
    f"gram.teacher={stage1}@{args.teacher}",
    f"schedules.gram_weight.final={args.weight}",
    f"schedules.gram_weight.first_step={args.steps}",
    f"schedules.gram_weight.steps={max(args.more // 10, 1)}",
  ]
  for name, settings in (("without", []), ("with Gram", gram)):
    folder = out / name.replace(" ", "_")
    copy(stage1, folder)
    train(folder, end, [*common, "extend=True", *settings])
    found[f"{name}, step {end:,}"] = iou(folder, end)
  return found


def spread(values: list[float], sign: str = "") -> str:
  """Mean and standard deviation."""
  deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
  return f"{statistics.mean(values):{sign}.1f}{deviation}"


def table(by_seed: list[dict[str, float]]) -> str:
  """A row a network: mean IoU, its difference to `without`, number of seeds."""
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
  parser.add_argument(
    "--teacher", type=int, help="its step; default a third of --steps"
  )
  parser.add_argument("--weight", type=float, default=2.0, help="of the Gram loss")
  parser.add_argument("--images", default="embedded:digits", help="without split")
  parser.add_argument("--crop", type=int, default=16, help="pixels, in evaluation")
  parser.add_argument("--set", nargs="*", default=[], help="fields, as group_size=64")
  args = parser.parse_args()
  args.teacher = args.teacher or args.steps // 3
  if not 0 < args.teacher <= args.steps or args.more < 1:
    sys.exit(f"--teacher={args.teacher} must be within --steps={args.steps}")
  settings = f"steps={args.steps}+{args.more},teacher={args.teacher}"
  settings = ",".join([settings, f"weight={args.weight:g}", *args.set])
  by_seed = []
  for seed in map(int, args.seeds.split(",")):
    out = pathlib.Path(args.out).absolute() / settings / f"seed={seed}"
    by_seed.append(of_seed(out, seed, args))
    print(f"\n{table(by_seed)}\n", flush=True)


if __name__ == "__main__":
  main()
