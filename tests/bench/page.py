"""The page of a long run: seconds to write it, its size, seconds to open it.

  python tests/bench/page.py --steps=100000

Makes a run of so many logged steps in a temporary folder, writes its page as training
does, and opens it in Chromium (Debian's chromium and chromium-driver, with selenium).
"""

import argparse
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import browser
import recorded

from dinojax.pages import run_files, run_page

OPENED = "const t = performance.timing; return t.loadEventEnd - t.navigationStart"


def main():
  """Prints the figures."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--steps", type=int, default=100_000)
  steps = parser.parse_args().steps
  with tempfile.TemporaryDirectory() as name:
    workdir = recorded.write_long(pathlib.Path(name) / "run", steps)
    out = workdir / run_page.NAME
    start, cpu = time.perf_counter(), time.process_time()
    run = run_files.read(workdir)
    read = time.process_time() - cpu
    run_page.write([run], out)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    size = (workdir / "metrics.jsonl").stat().st_size
    print(f"{steps:,} logged steps, {size / 1e6:.0f} MB of metrics")
    print(f"written in {seconds:.1f} s: {cpu:.1f} s of a core, {read:.1f} s to read")
    print(f"page of {out.stat().st_size / 1e6:.2f} MB")
    with browser.opened(out) as driver:
      for _ in range(4):
        driver.get(out.as_uri())
        print(f"opened in {driver.execute_script(OPENED) / 1000:.2f} s")


if __name__ == "__main__":
  main()
