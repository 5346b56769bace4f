"""Report on runs: one HTML page that shows whether a run learns.

  python -m dinojax.report --workdir=RUN
  python -m dinojax.report --workdir=RUN_A --workdir=RUN_B --out=comparison.html

The page opens from disk, without a network. Training writes the same page with each
checkpoint. Several runs are overlaid, with their best numbers and the fields in which
their configs differ.
"""

import dataclasses
import pathlib

from absl import flags

from dinojax import durable, errors
from dinojax.commands import cli
from dinojax.reporting import run_files, run_page

WORKDIR = flags.DEFINE_multi_string(
  "workdir", [], "Workdir of a run; given several times, the runs are compared."
)
OUT = flags.DEFINE_string(
  "out", None, f"File to write; default {run_page.NAME} in the workdir of a single run."
)


def read_run(workdir: str) -> run_files.Run:
  """Reads a run; levels that an older one did not log come from its config."""
  run = run_files.read(pathlib.Path(workdir).expanduser())
  dino = run.field("heads.dino.prototypes")
  ibot = run.field("heads.ibot.prototypes", dino)
  counts = [count for count in (dino, ibot) if isinstance(count, int) and count > 1]
  if run.nothing_learnt is not None or len(counts) != 2:
    return run
  from dinojax import losses  # here, since it imports JAX, which takes a second

  level = losses.nothing_learnt(dino_prototypes=dino, ibot_prototypes=ibot)
  return dataclasses.replace(run, nothing_learnt=level)


def main(_) -> None:
  """Writes the page."""
  if not WORKDIR.value:
    raise errors.UserError("--workdir=RUN is missing; give the workdir of a training")
  runs = [read_run(workdir) for workdir in WORKDIR.value]
  if not OUT.value and len(runs) > 1:
    raise errors.UserError("--out=FILE is missing; try comparison.html")
  out = pathlib.Path(OUT.value or runs[0].path / run_page.NAME).expanduser()
  durable.check_file(str(out), flag="--out", example=run_page.NAME)
  run_page.write(runs, out)
  print(out)


if __name__ == "__main__":
  cli.run(main, on_interrupt="interrupted; no page is written", config=False)
