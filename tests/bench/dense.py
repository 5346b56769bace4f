"""What patches know: each dense task for a trained network, an untrained one, pixels.

  python tests/bench/dense.py --out=runs/dense
  python tests/bench/dense.py --out=runs/dense --seeds=0 --steps=300 --tasks=depth

For each seed `digits.py` trains by the real command. Then its EMA teacher, a network
of random weights and the pixels of patches themselves are evaluated, by the code that
`evaluate` calls: the attentive probe on digits of 16 pixels, segmentation on scenes,
and depth on those of several distances. Prints mean and standard deviation over seeds.
The same command resumes where it was ended, and prints what is there so far after each
seed.

The network is trained on single digits, which crops of 16 pixels show 16 to 21 pixels
large. Segmentation enlarges scenes from 48 to 56 pixels, where digits have 16 to 23,
and windows of 16 slide over them. On whole scenes nothing separates in k-NN: attention
is over 144 patches, mostly background and other digits, where training knew the 16 of
one digit. Position embeddings are not why: repeated 3 x 3 times, or their mean
everywhere, they give the same as resized. Depth sees whole scenes, since digits are
up to 36 pixels large there.
"""

import argparse
import functools
import json
import pathlib
import statistics
import subprocess
import sys

import jax
import jax.numpy as jnp
from absl import flags

from dinojax import assembly, backbone, sharding
from dinojax.data import images, layouts, sources
from dinojax.evals import attentive, dense_tasks, patches, sliding
from experiments import digits

ROOT = pathlib.Path(__file__).parents[2]
PATCH, DIGIT = 4, 16  # pixels
SIDES = {"scenes": (56, 16), "depth": (48, 48)}  # pixels, and those of a window
CROPS = dict(batch_size=16, flip_prob=0.0)
MEMORY = dict(memory=32_768)  # of 1,024 scenes
# By name: the number that counts, the data, the task but for its steps and seed.
TASKS = {
  "attentive": ("attentive_top1", "digits", dense_tasks.Attentive),
  "knn_segmentation": ("knn_segmentation_miou", "scenes", dense_tasks.KnnSegmentation),
  "logreg_segmentation": (
    *("logreg_segmentation_miou", "scenes"),
    dense_tasks.LogRegSegmentation,
  ),
  "linear_segmentation": (
    *("linear_segmentation_miou", "scenes"),
    dense_tasks.LinearSegmentation,
  ),
  "depth": ("depth_rmse", "depth", dense_tasks.Depth),
}
NETWORKS = "trained", "untrained", "pixels"


def settings(name: str, steps: int, seed: int) -> dict:
  """The fields of a task."""
  probe = dict(CROPS, batch_size=128, min_area=0.6)
  more = {
    "attentive": dict(probe, steps=steps),
    "knn_segmentation": dict(MEMORY, k=30, temperature=0.02),
    "logreg_segmentation": MEMORY,
    "linear_segmentation": dict(CROPS, steps=steps),
    "depth": dict(CROPS, steps=steps, low=0.5, high=5.0, crop="none"),
  }
  return dict(more[name], seed=seed)


def train(folder: pathlib.Path, steps: int, seed: int) -> None:
  """Runs the config to its end, or does nothing if it has ended before."""
  if (folder / "checkpoints" / str(steps)).exists():
    return
  command = [sys.executable, "-m", "dinojax.main", "--config=experiments/digits.py"]
  fields = [f"workdir={folder}", f"total_steps={steps}", f"alarm_window={steps}"]
  fields += [f"seed={seed}", "knn.every=0", "checkpoint.keep_last=1"]
  overrides = [f"--config.{field}" for field in fields]
  subprocess.run([*command, *overrides], cwd=ROOT, check=True)


def network(name: str, folder: pathlib.Path, seed: int, mesh) -> tuple:
  """(function of weights and images to patch tokens, weights, D)."""
  if name == "pixels":

    def pixels(_, image):
      size, side = image.shape[0], image.shape[1] // PATCH
      x = image.reshape(size, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
      return x.reshape(size, side**2, -1) / jnp.float32(255)

    return jax.jit(pixels), jnp.zeros(()), PATCH * PATCH * 3
  if name == "trained":
    loaded = backbone.load(str(folder), mesh=mesh)
    module, params = loaded.module, loaded.params
  else:
    run = assembly.assemble(digits.get_config(), mesh)
    params = run.init(jax.random.key(seed)).teacher["backbone"]
    module = run.nets.backbone

  def apply(params, image):
    return backbone.apply(module, params, image).patches

  return jax.jit(apply), params, module.width


def evaluate(name: str, seen: tuple, steps: int, seed: int, mesh) -> dict:
  """The numbers of a task; seen: of `network`."""
  metric, data, kind = TASKS[name]
  task, (apply, params, width) = kind(**settings(name, steps, seed)), seen
  opened = {
    split: sources.open_source(f"embedded:{data}:{split}", field=split)
    for split in ("train", "test")
  }
  reading = dict(mesh=mesh, batch_size=64, workers=0, max_pixels=images.MAX_PIXELS)
  reading |= dict(layout=layouts.RGB, progress=lambda: None)
  if name == "attentive":
    how = dict(reading, resize=DIGIT, crop=DIGIT)
    seen = attentive.Network(apply, params, width, how)
    found = task.evaluate(seen, opened, opened["train"].class_names)
  else:
    side, window = SIDES[data]
    if window < side:
      apply = sliding.patch_tokens(apply, window=window, patch_size=PATCH)
    reader = patches.Reader(apply, params, patch_size=PATCH, side=side, **reading)
    names = getattr(opened["train"], "map_classes", ())
    remembered = functools.cache(
      lambda: patches.remember(
        *(reader, opened["train"]),
        num_classes=len(names),
        most=MEMORY["memory"],
        seed=seed,
        description="patches",
      )
    )
    seen = dense_tasks.Seen(reader, width, remembered)
    found = task.evaluate(seen, opened, *([names] if names else []))
  return {"value": found[metric], **found}


def spread(values: list[float], name: str) -> str:
  """Mean and standard deviation: metres of depth, else percent."""
  factor, places = (1, 3) if name == "depth" else (100, 1)
  values = [factor * value for value in values]
  deviation = f" ± {statistics.stdev(values):.{places}f}" if len(values) > 1 else ""
  return f"{statistics.mean(values):.{places}f}{deviation}"


def table(found: dict[tuple, float], tasks: list[str], seeds: int) -> str:
  """A row a network, a column a task."""
  titles = [f"{x}, {'m' if x == 'depth' else '%'}" for x in tasks]
  lines = [f"| {seeds} seeds | {' | '.join(titles)} |", "|---" * (len(tasks) + 1) + "|"]
  for net in NETWORKS:
    cells = [
      spread([x for (n, t, _), x in found.items() if (n, t) == (net, task)], task)
      for task in tasks
    ]
    lines.append(f"| {net} | {' | '.join(cells)} |")
  return "\n".join(lines)


def main() -> None:
  """Trains and evaluates what is missing, and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", required=True, help="folder of runs and numbers")
  parser.add_argument("--seeds", default="0,1,2", help="with commas")
  parser.add_argument("--tasks", default=",".join(TASKS), help="with commas")
  parser.add_argument("--steps", type=int, default=3_000, help="of the training")
  parser.add_argument("--head_steps", type=int, default=1_000, help="of each head")
  args = parser.parse_args()
  flags.FLAGS.mark_as_parsed()  # Grain's
  mesh = sharding.make_mesh(data=1, fsdp=-1)
  out, found, tasks = pathlib.Path(args.out).absolute(), {}, args.tasks.split(",")
  for count, seed in enumerate(map(int, args.seeds.split(",")), start=1):
    folder = out / f"steps={args.steps}" / f"seed={seed}"
    train(folder, args.steps, seed)
    with jax.set_mesh(mesh):
      for net in NETWORKS:
        seen = functools.cache(functools.partial(network, net, folder, seed, mesh))
        for task in tasks:
          path = folder / f"{net}_{task}_{args.head_steps}.json"
          if not path.exists():
            numbers = evaluate(task, seen(), args.head_steps, seed, mesh)
            path.with_suffix(".part").write_text(json.dumps(numbers, indent=1))
            path.with_suffix(".part").rename(path)
            print(f"{path.name}: {numbers['value']:.4f}", flush=True)
          found[net, task, seed] = json.loads(path.read_text())["value"]
    print(f"\n{table(found, tasks, count)}\n", flush=True)


if __name__ == "__main__":
  main()
