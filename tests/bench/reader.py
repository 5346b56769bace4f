"""One random record of a source: time, memory of a worker, start-up, fingerprint.

  python tests/bench/reader.py --kind=folder --records=1000000 --folder=FOLDER

Makes files of records of 200 bytes, if FOLDER is not there, opens them as training
does, and reads records in a random order, from the page cache: ArrayRecord shards of
32,000 records, tar files of 10,000, Parquet files of 10,000 in row groups of 100, or
folders
of 1,000 files. A worker is a spawned process that reads; beside it stands one that
imports the same and reads nothing.
"""

import argparse
import io
import multiprocessing
import pathlib
import sys
import tarfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from dinojax.data import sources

PATTERNS = {
  "arrayrecord": "/*.array_record",
  "tar": "/*.tar",
  "parquet": "/*.parquet",
  "folder": "",
}
PER_FILE = {"arrayrecord": 32_000, "tar": 10_000, "parquet": 10_000, "folder": 1_000}


def write_arrayrecord(path, records):
  """Writes one shard."""
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(f"{path}.array_record", "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


def write_tar(path, records):
  """Writes one tar file, with a .json beside each image, as img2dataset does."""
  with tarfile.open(f"{path}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
    for i, record in enumerate(records):
      for name, content in ((f"{i:09}.jpg", record), (f"{i:09}.json", b"{}")):
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def write_parquet(path, records):
  """Writes one file."""
  import pyarrow
  from pyarrow import parquet

  table = pyarrow.table({"image": records})
  parquet.write_table(table, f"{path}.parquet", row_group_size=100)


def write_folder(path, records):
  """Writes one folder."""
  path.mkdir()
  for i, record in enumerate(records):
    (path / f"{i:06}.jpg").write_bytes(record)


def private_memory():
  """MiB of this process alone; the mapped index is the page cache's, and clean."""
  lines = pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines()
  return (
    sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
    / 1024
  )


def work(source, reads, queue):
  """Reads, if there is a source; puts the seconds of each read, and the memory."""
  seconds = []
  if source is not None:
    for i in np.random.default_rng(1).integers(0, len(source), reads).tolist():
      start = time.perf_counter()
      source[i]
      seconds.append(time.perf_counter() - start)
  queue.put((seconds, private_memory()))


def in_worker(source, reads):
  """What `work` puts, from a process of its own."""
  context = multiprocessing.get_context("spawn")
  queue = context.Queue()
  process = context.Process(target=work, args=(source, reads, queue))
  process.start()
  result = queue.get()
  process.join()
  return result


def main():
  """Prints the figures."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--kind", choices=list(PATTERNS), default="arrayrecord")
  parser.add_argument("--records", type=int, default=1_000_000)
  parser.add_argument("--reads", type=int, default=20_000)
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  args = parser.parse_args()
  per_file = PER_FILE[args.kind]
  if not args.folder.exists():
    args.folder.mkdir(parents=True)
    data = np.random.default_rng(0).bytes(200 + per_file)
    records = [b"x" + data[i : i + 199] for i in range(per_file)]
    for start in range(0, args.records, per_file):
      path = args.folder / f"{start // per_file:05}"
      globals()[f"write_{args.kind}"](path, records[: args.records - start])
  for path in args.folder.glob(".dinojax-index-*"):
    path.unlink()
  for title in ("first opening", "opening again"):
    start = time.perf_counter()
    source = sources.open_source(
      f"{args.kind}:{args.folder}{PATTERNS[args.kind]}", field="-"
    )
    print(f"{title}: {time.perf_counter() - start:.2f} s, {len(source):,} records")
  print(source.fingerprint)
  seconds, memory = in_worker(source, args.reads)
  _, without = in_worker(None, 0)
  print(f"one random record: median {np.median(seconds) * 1e6:.1f} us,", end=" ")
  print(f"99th percentile {np.quantile(seconds, 0.99) * 1e6:.1f} us")
  print(f"a worker: {memory:.1f} MiB of its own, {without:.1f} without the source")


if __name__ == "__main__":
  main()
