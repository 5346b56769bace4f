"""Fuzzing: damaged files of every format that is read end in our own errors, and soon.

  python tests/bench/fuzz.py --cases=10000
  python tests/bench/fuzz.py --only=1234    # one case again, with its traceback

Case k damages a sound file, by random numbers of seed (seed, k): bits, bytes and sizes
are changed, parts cut out, doubled, or taken from another file, names become odd. Some
cases add rubbish as metadata of an image, whose pixels must stay as they are. Then the
file is read as training, ingest, embed, convert and a resumed run read it. Nothing but
our own errors may come of it; no case may take more than --seconds or --gigabytes; and
records that were not damaged must be read as before.

Cases run in a process of their own, so that one that crashes or hangs is a result, too.
"""

import argparse
import collections
import os
import pathlib
import queue
import re
import resource
import subprocess
import sys
import tempfile
import threading
import traceback

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import fuzz_samples

from dinojax import errors

SIZES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, -1]
NAMES = ["a b.png", "new\nline.png", "\x1b[31m.png", "a.b.c.png", ".png", "é\udcff.png"]
NAMES += ["x" * 200 + ".png", "UP.PNG", "no_ending", "-rf.png", "a'\"$(x).png"]
METADATA_SHARE = 0.3  # of the cases of images
SPARSE = ("folder", "tar", "tar.gz", "parquet", "arrayrecord")
SPARSE_SHARE = 0.05  # of the cases of these, in which a file seems to have 64 GB
START_SECONDS = 300


def damage(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
  """Changes a file in one to three places, more often near its beginning."""
  data = bytearray(data)
  for _ in range(rng.integers(1, 4)):
    if not data:
      break
    start = int(len(data) * rng.random() ** 2)
    end = start + int(rng.integers(1, 1 + min(64, len(data) - start)))
    step = rng.integers(8)
    if step == 0:
      data[start] ^= 1 << int(rng.integers(8))
    elif step == 1:
      data[start:end] = rng.bytes(end - start)
    elif step in (2, 3):
      width = int(rng.choice([1, 2, 4, 8]))
      value = SIZES[rng.integers(len(SIZES))] % (1 << 8 * width)
      order = "big" if rng.random() < 0.5 else "little"
      data[start : start + width] = value.to_bytes(width, order)
    elif step == 4:
      del data[max(start, 1) :]
    elif step == 5:
      del data[start:end]
    elif step == 6:
      data[start:start] = data[start:end] * int(rng.integers(1, 100))
    else:
      data[start:] = other[int(len(other) * rng.random()) :]
  return bytes(data)


def _change(rng, path, data, other):
  """Damages a file, or what it says where checksums or a syntax guard that."""
  if data.startswith(b"{") and rng.random() < 0.7:
    return fuzz_samples.change_json(rng, data)
  data = damage(rng, data, other)
  return fuzz_samples.repair(path, data) if rng.random() < 0.5 else data


def write(folder: pathlib.Path, files: dict[str, bytes]) -> None:
  """Writes the files of a case."""
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def run_case(samples: dict, wholes: dict, seed: int, case: int) -> str:
  """Returns "read" or "refused"; raises whatever else comes of a case."""
  rng = np.random.default_rng((seed, case))
  weights = np.array([sample.weight for sample in samples.values()])
  name = list(samples)[rng.choice(len(samples), p=weights / weights.sum())]
  sample, whole = samples[name], wholes[name]
  files = dict(sample.files)
  path = list(files)[rng.integers(len(files))]
  harmless = name in files and rng.random() < METADATA_SHARE
  if harmless:
    files[path] = fuzz_samples.add_metadata(rng, name, files[path])
  elif sample.records and rng.random() < 0.2:
    odd = pathlib.Path(path).parent / NAMES[rng.integers(len(NAMES))]
    files[str(odd)] = files.pop(path)
  else:
    everything = [x for other in samples.values() for x in other.files.values()]
    other = everything[rng.integers(len(everything))]
    files[path] = _change(rng, path, files[path], other)
  with tempfile.TemporaryDirectory() as folder:
    write(pathlib.Path(folder), files)
    sparse = name in SPARSE and path in files and rng.random() < SPARSE_SHARE
    if sparse:
      os.truncate(pathlib.Path(folder) / path, 1 << 36)
    try:
      found = sample.read(pathlib.Path(folder))
    except errors.UserError as error:
      assert "\n" not in str(error), error
      assert not harmless, f"a sound image is lost: {error}"
      return "refused"
  if harmless:
    assert found[0] is not None, "a sound image is lost"
    np.testing.assert_array_equal(found[0], whole[0])
  if sample.records:
    lost = [i for i, x in enumerate(whole) if x not in found]
    assert len(lost) <= sample.records.get(path, 0), f"sound images are lost: {lost}"
  return "read" if found and found[0] is not None else "refused"


def work(seed: int, cases: range, gigabytes: float, match: str) -> None:
  """Runs cases, and prints a line before and after each."""
  with tempfile.TemporaryDirectory() as folder:
    samples = fuzz_samples.make(pathlib.Path(folder))
    samples = {name: x for name, x in samples.items() if re.search(match, name)}
    wholes = {}
    for name, sample in samples.items():
      with tempfile.TemporaryDirectory() as copy:
        write(pathlib.Path(copy), sample.files)
        wholes[name] = sample.read(pathlib.Path(copy))
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(gigabytes * (1 << 30))
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for case in cases:
      print("case", case, flush=True)
      try:
        print("done", run_case(samples, wholes, seed, case), flush=True)
      except Exception as error:
        text = traceback.format_exc() if len(cases) == 1 else ""
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(text, file=sys.stderr)
        print("done", "failed", reason, flush=True)


def run(
  *, cases: range, seed: int, seconds: float, gigabytes: float, match: str = ""
) -> tuple[collections.Counter, list[str]]:
  """Runs cases in other processes; returns counts, and a line for each failure."""
  counts, failures, start = collections.Counter(), [], cases.start
  while start < cases.stop:
    command = [sys.executable, __file__, "--worker", f"--seed={seed}"]
    command += [f"--start={start}", f"--cases={cases.stop - start}"]
    command += [f"--gigabytes={gigabytes}", f"--match={match}"]
    with tempfile.TemporaryFile("w+") as log:
      worker = subprocess.Popen(
        command,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
      )
      lines = queue.SimpleQueue()
      reader = threading.Thread(target=_forward, args=(worker.stdout, lines))
      reader.start()
      case, end = None, ""
      while not end:
        try:
          # Samples are made first, which takes longer than a case.
          line = lines.get(timeout=START_SECONDS if case is None else seconds)
        except queue.Empty:
          end = f"takes over {seconds:g} s"
          break
        kind, _, rest = line.partition(" ")
        if kind == "case":
          case = int(rest)
        elif kind == "done":
          outcome, _, reason = rest.partition(" ")
          counts[outcome] += 1
          failures += [f"case {case}: {reason}"] if reason else []
          start = case + 1
        else:
          end = f"ends the process, with status {worker.wait()}"
      worker.kill()
      worker.wait()
      reader.join()
      worker.stdout.close()
      log.seek(0)
      text = log.read()
    if case is None:
      raise RuntimeError(f"the samples are not read as they should be:\n{text}")
    if len(cases) == 1:
      print(text)
    if start < cases.stop:
      failures.append(f"case {case}: {end}")
      counts["failed"] += 1
      start = case + 1
  return counts, failures


def _forward(stream, lines):
  """Passes on the lines of a worker, and an empty one at its end."""
  for line in stream:
    lines.put(line.strip())
  lines.put("")


def main():
  """Prints failures and counts; ends with 1 if there are failures."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--cases", type=int, default=10_000, help="how many")
  parser.add_argument("--start", type=int, default=0, help="number of the first")
  parser.add_argument("--only", type=int, help="number of a single case")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--match", default="", help="formats alone that match this")
  parser.add_argument("--seconds", type=float, default=60, help="limit of a case")
  parser.add_argument("--gigabytes", type=float, default=3, help="limit of its memory")
  parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  cases = range(args.start, args.start + args.cases)
  if args.only is not None:
    cases = range(args.only, args.only + 1)
  if args.worker:
    work(args.seed, cases, args.gigabytes, args.match)
    return
  limits = dict(seconds=args.seconds, gigabytes=args.gigabytes)
  counts, failures = run(cases=cases, seed=args.seed, match=args.match, **limits)
  for line in failures:
    print(line)
  print(", ".join(f"{counts[name]:,} {name}" for name in ("read", "refused", "failed")))
  sys.exit(bool(failures))


if __name__ == "__main__":
  main()
