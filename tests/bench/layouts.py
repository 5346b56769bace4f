"""Trains on many layouts of processes and devices, and compares each with one device.

  python tests/bench/layouts.py --repeat=5

Two steps of a network that is sharded throughout, in 2, 3 and 4 processes of 1 and 2
CPU devices, on every mesh: losses, gradient norms and weights must be those of one
device, and each program must leave its collectives one possible order. On two cores a
round takes some minutes; run it beside other work, too.
"""

import argparse
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import together

LAYOUTS = [
  (count, devices, data)
  for count in (2, 3, 4)
  for devices in (1, 2)
  for data in sorted({1, devices, count, count * devices})
]


def main():
  """Runs all layouts; stops at the first that fails."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--repeat", type=int, default=1)
  for _ in range(parser.parse_args().repeat):
    for count, devices, data in LAYOUTS:
      start = time.monotonic()
      with tempfile.TemporaryDirectory() as folder:
        together.check(f"{folder}/result", count=count, devices=devices, data=data)
      fsdp = count * devices // data
      seconds = time.monotonic() - start
      print(
        f"{count} x {devices} as {data} x {fsdp}: equal, {seconds:.0f} s", flush=True
      )


if __name__ == "__main__":
  main()
