"""One random record of many ArrayRecord shards: time, memory of a worker, start-up.

  python tests/bench/reader.py --records=2000000 --folder=FOLDER

Makes shards of 32,000 records of 200 bytes with array_record's writer, if FOLDER has
none, opens them as training does, and reads records in a random order, from the page
cache. A worker is a spawned process that reads 100,000 records; beside it stands one
that imports the same and reads nothing.
"""

import argparse
import multiprocessing
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from dinojax.data import sources

PER_SHARD = 32_000


def write(folder, records):
  """Writes the shards."""
  from array_record.python import array_record_module

  folder.mkdir(parents=True, exist_ok=True)
  data = np.random.default_rng(0).bytes(200 + PER_SHARD)
  for start in range(0, records, PER_SHARD):
    path = folder / f"{start // PER_SHARD:05}.array_record"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for i in range(min(PER_SHARD, records - start)):
      writer.write(b"x" + data[i : i + 199])
    writer.close()


def private_memory():
  """MiB of this process alone; the mapped index is the page cache's, and clean."""
  lines = pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines()
  return (
    sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
    / 1024
  )


def work(source, queue):
  """Reads, if there is a source, and tells seconds of each and memory."""
  seconds = []
  if source is not None:
    for i in np.random.default_rng(1).integers(0, len(source), 100_000).tolist():
      start = time.perf_counter()
      source[i]
      seconds.append(time.perf_counter() - start)
  queue.put((seconds, private_memory()))


def in_worker(source):
  """What `work` tells from a process of its own."""
  context = multiprocessing.get_context("spawn")
  queue = context.Queue()
  process = context.Process(target=work, args=(source, queue))
  process.start()
  result = queue.get()
  process.join()
  return result


def main():
  """Prints the figures."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--records", type=int, default=2_000_000)
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  args = parser.parse_args()
  if not list(args.folder.glob("*.array_record")):
    write(args.folder, args.records)
  for path in args.folder.glob(".dinojax-index-*"):
    path.unlink()
  for title in ("first opening, with its index", "opening"):
    start = time.perf_counter()
    source = sources.open_source(f"arrayrecord:{args.folder}/*.array_record", field="-")
    print(f"{title}: {time.perf_counter() - start:.3f} s, {len(source):,} records")
  seconds, memory = in_worker(source)
  _, without = in_worker(None)
  print(f"one random record: median {np.median(seconds) * 1e6:.1f} us,", end=" ")
  print(f"99th percentile {np.quantile(seconds, 0.99) * 1e6:.1f} us")
  print(f"a worker: {memory:.1f} MiB of its own, {without:.1f} without the source")


if __name__ == "__main__":
  main()
