"""Benchmark of ingest: planted duplicates that it finds, images that it loses, speed.

  python tests/bench/ingest.py --images=CIFAR10 --work=FOLDER [--kills=3]

CIFAR10 is a folder of images. Exact duplicates, copies that are encoded again, or
resized and encoded, and corrupt files are planted beside them. Dropped images of
CIFAR's own are counted apart: with equal pixels they are duplicates; others count as
distinct images lost, though most are duplicates to the eye (lost.png). Then ingest runs
again, is killed (-9) on the way and resumes, and all bytes are compared.
"""

import argparse
import csv
import hashlib
import io
import json
import pathlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from dinojax.data import images, sources

ROOT = pathlib.Path(__file__).parents[2]


def plant(originals, folder, rng, *, exact, near, corrupt):
  """Writes the planted files; {planted path: its original}, by kind."""
  shutil.rmtree(folder, ignore_errors=True)
  chosen = [originals[i] for i in rng.permutation(len(originals))]
  planted = {"exact": {}, "near": {}, "corrupt": {}}
  for kind, count in (("exact", exact), ("near", near), ("corrupt", corrupt)):
    (folder / kind).mkdir(parents=True)
    for number in range(count):
      original = chosen.pop()
      path = folder / kind / f"{number:05d}.jpg"
      content = original.read_bytes()
      if kind == "near":
        content = reencoded(content, number, rng)
      elif kind == "corrupt":
        content = damaged(content, number, rng)
      path.write_bytes(content)
      planted[kind][str(path)] = str(original)
  return planted


def reencoded(content, number, rng):
  """The image in other bytes: encoded again, or resized by 0.5 to 2 and encoded."""
  image = Image.open(io.BytesIO(content)).convert("RGB")
  if number % 2:
    size = [max(round(x * 2 ** rng.uniform(-1, 1)), 1) for x in image.size[:1]] * 2
    how = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC][number // 2 % 2]
    image = image.resize(size, how)
  file = io.BytesIO()
  image.save(file, "JPEG", quality=int(rng.integers(50, 91)))
  return file.getvalue()


def damaged(content, number, rng):
  """Bytes that are no image any more."""
  return [
    content[: len(content) // 2],
    b"",
    b"<html>404</html>",
    rng.bytes(len(content)),
    content[:20] + rng.bytes(200),
  ][number % 5]


def command(args, out):
  inputs = [f"--images=folder:{args.images}", f"--images=folder:{args.work}/planted"]
  flags = ["--min_side=8", f"--records_per_shard={args.records_per_shard}"]
  run = [sys.executable, "-m", "dinojax.ingest", *inputs, *flags, f"--out={out}"]
  return [*run, *args.more]


def ingest(args, out):
  """Runs it from the start; returns seconds."""
  clean(out)
  begun = time.perf_counter()
  subprocess.run(command(args, out), cwd=ROOT, check=True)
  return time.perf_counter() - begun


def killed(args, out, seconds, rng):
  """Runs it, kills it a few times, and restarts it; returns how often it was killed."""
  clean(out)
  kills = 0
  for _ in range(args.kills):
    process = subprocess.Popen(command(args, out), cwd=ROOT)
    try:
      process.wait(rng.uniform(0.1, 0.4) * seconds)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
      kills += 1
  subprocess.run(command(args, out), cwd=ROOT, check=True)
  return kills


def clean(out):
  shutil.rmtree(out.parent, ignore_errors=True)


def contents(out):
  """{file: hash} of everything in a folder."""
  return {
    str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in out.rglob("*")
    if path.is_file()
  }


def names_kept(out):
  from tensorflow_datasets.core import read_only_builder

  builder = read_only_builder.builder_from_directory(out)
  import tensorflow_datasets as tfds

  skip = {"image": tfds.decode.SkipDecoding()}
  return [x["source"].decode() for x in builder.as_data_source("train", decoders=skip)]


def sheet(pairs, path, side=96):
  """Pairs of images side by side, to look at."""
  columns = 8
  rows = -(-len(pairs) // columns)
  page = Image.new("RGB", (columns * (2 * side + 8), max(rows, 1) * (side + 8)))
  for i, pair in enumerate(pairs):
    for j, name in enumerate(pair):
      picture = Image.open(name).convert("RGB").resize((side, side))
      x, y = i % columns * (2 * side + 8) + j * side, i // columns * (side + 8)
      page.paste(picture, (x, y))
  page.save(path)


def print_results(args, out, planted, originals):
  """Prints what was found against what was planted."""
  kept = names_kept(out)
  with open(out / "dropped.csv", newline="") as file:
    rows = list(csv.reader(file))[1:]
  dropped = {name: (reason, match) for name, reason, _, match in rows}
  everything = sorted([*map(str, originals), *(x for k in planted.values() for x in k)])
  assert sorted([*kept, *dropped]) == everything, "each image once: kept or dropped"
  kept = set(kept)
  for kind in ("exact", "near"):
    both = sum(
      copy in kept and source in kept for copy, source in planted[kind].items()
    )
    total = len(planted[kind])
    print(f"{kind} duplicates: {total - both} of {total} pairs have one left")
  corrupt = sum(x in kept for x in planted["corrupt"])
  print(
    f"corrupt: {len(planted['corrupt']) - corrupt} of {len(planted['corrupt'])} out"
  )

  def origin(name):
    return planted["exact"].get(name) or planted["near"].get(name) or name

  pairs = {
    tuple(sorted((origin(name), origin(match))))
    for name, (_, match) in dropped.items()
    if match and origin(name) != origin(match)
  }
  own = set(map(str, originals))
  lost = {
    name: origin(match)
    for name, (_, match) in dropped.items()
    if name in own and origin(match) not in (name, "")
  }

  def pixels(name):
    return images.decode(pathlib.Path(name).read_bytes())

  equal = sum(np.array_equal(pixels(a), pixels(b)) for a, b in lost.items())
  refused = [
    n for n, (_, s) in dropped.items() if not s and n not in planted["corrupt"]
  ]
  sheet(sorted(lost.items()), args.work / "lost.png")
  print(
    f"of {len(originals)} distinct images {len(lost)} were dropped for another one,"
    f" {equal} of them with equal pixels; lost at most"
    f" {len(lost) - equal + len(refused)} ="
    f" {(len(lost) - equal + len(refused)) / len(originals):.4%}; {len(pairs)} pairs"
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--images", type=pathlib.Path, required=True)
  parser.add_argument("--work", type=pathlib.Path, required=True)
  parser.add_argument("--exact", type=int, default=500)
  parser.add_argument("--near", type=int, default=500)
  parser.add_argument("--corrupt", type=int, default=300)
  parser.add_argument("--kills", type=int, default=3)
  parser.add_argument("--records_per_shard", type=int, default=32_000)
  parser.add_argument("--seed", type=int, default=0)
  args, args.more = parser.parse_known_args()
  args.images, args.work = args.images.resolve(), args.work.resolve()
  source = sources.open_source(f"folder:{args.images}", field="--images")
  originals = [pathlib.Path(source.name(i)) for i in range(len(source))]
  numbers = dict(exact=args.exact, near=args.near, corrupt=args.corrupt)
  rng = np.random.default_rng(args.seed)
  planted = plant(originals, args.work / "planted", rng, **numbers)
  outs = [args.work / name / "web" / "1.0.0" for name in ("first", "second")]
  seconds = ingest(args, outs[0])
  manifest = json.loads((outs[0] / "manifest.json").read_text())
  total = len(originals) + sum(numbers.values())
  print(f"{total:,} images in {seconds:.0f} s; dropped {manifest['dropped']}")
  print_results(args, outs[0], planted, originals)
  if args.kills:
    kills = killed(args, outs[1], seconds, random.Random(args.seed))
    first, second = map(contents, outs)
    equal = sum(second.get(name) == found for name, found in first.items())
    print(f"killed {kills} times: {equal} of {len(first)} files are the same")


if __name__ == "__main__":
  main()
