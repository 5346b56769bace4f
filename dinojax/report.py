"""Report on runs and weights: one HTML page that shows whether, and what, a run learns.

  python -m dinojax.report --workdir=RUN
  python -m dinojax.report --workdir=RUN_A --workdir=RUN_B --out=comparison.html
  python -m dinojax.report --workdir=RUN --images=folder:PHOTOS
  python -m dinojax.report --checkpoint=WEIGHTS --images=folder:PHOTOS --out=DIR

The page opens from disk, without a network. Training writes the same page with each
checkpoint. Several runs are overlaid, with their best numbers and the fields in which
their configs differ.

With --images the page shows pictures of what the teacher makes of these images: PCA of
patch tokens, similarity of patches, attention, neighbours, a map, prototypes. They are
PNG files, too, in RUN/pictures or in DIR. Weights need no run behind them.
"""

import contextlib
import dataclasses
import pathlib

from absl import flags

from dinojax import durable, errors
from dinojax.commands import backbone_flags, cli
from dinojax.pages import markup, page, panels, run_files, run_page, run_record

WORKDIR = flags.DEFINE_multi_string(
  "workdir", [], "Workdir of a run; given several times, the runs are compared."
)
OUT = flags.DEFINE_string(
  "out",
  None,
  f"File to write; default {run_page.NAME} in the workdir of a single run. With"
  " --checkpoint a folder.",
)
IMAGES = flags.DEFINE_string(
  "images", None, "Source of images for pictures, such as folder:PHOTOS."
)
COUNT = flags.DEFINE_integer(
  "count", 8, "Images for pictures of patches, evenly spaced.", lower_bound=1
)
AT_MOST = flags.DEFINE_integer(
  "at_most",
  10_000,
  "Images for neighbours, map and prototypes, evenly spaced.",
  lower_bound=1,
)
UMAP = flags.DEFINE_bool("umap", False, "The map also by UMAP, of the extra [umap].")
for name in (
  *("checkpoint", "step", "heads", "pool", "dtype", "crop", "resize"),
  *("batch_size", "workers", "hang_minutes"),
):
  flags.declare_key_flag(name)


def read_run(workdir: str) -> run_record.Run:
  """Reads a run; levels that an older one did not log come from its config."""
  run = run_files.read(pathlib.Path(workdir).expanduser())
  dino = run.count("heads.dino.prototypes")
  ibot = run.count("heads.ibot.prototypes") or dino
  features = run.field("distill.kind") == "features"
  if run.nothing_learnt is not None or dino is None or features:
    return run
  from dinojax import losses  # here, since it imports JAX, which takes a second

  level = losses.nothing_learnt(dino_prototypes=dino, ibot_prototypes=ibot)
  return dataclasses.replace(run, nothing_learnt=level)


def write_pictures(weights: str, folder: pathlib.Path) -> None:
  """Writes pictures of what weights make of --images into a folder."""
  # Here, since a page of runs alone needs no JAX.
  from dinojax.data import sources
  from dinojax.pictures import album, files, planes, teachers
  from dinojax.runtime import compiled

  if UMAP.value:
    planes.check_umap()
  source = sources.open_source(IMAGES.value, field="--images")
  files.make_folder(folder)
  compiled.keep_programs("auto")
  teacher, origin = teachers.load(
    weights,
    step=backbone_flags.STEP.value,
    heads=backbone_flags.HEADS.value,
    pool=backbone_flags.POOL.value,
    dtype=backbone_flags.DTYPE.value,
    resize=backbone_flags.RESIZE.value,
    crop=backbone_flags.CROP.value,
  )
  with contextlib.closing(backbone_flags.open_watchdog()) as watch:
    shown = album.collect(
      teacher,
      source,
      count=COUNT.value,
      at_most=AT_MOST.value,
      batch_size=backbone_flags.batch_size(1),
      workers=backbone_flags.WORKERS.value,
      progress=watch.step_done,
    )
    cropped = teachers.run_crops(source, origin.config, count=COUNT.value)
  shown = dataclasses.replace(shown, cropped=cropped)
  about = f"Pictures of {weights}{origin.step_text}, images of {IMAGES.value}."
  files.write(shown, folder, about=about, umap=UMAP.value)


def write_page_of_weights(folder: pathlib.Path) -> pathlib.Path:
  """Writes the page of a folder of pictures; returns its path."""
  out = folder / run_page.NAME
  title = markup.tag("h1", backbone_flags.CHECKPOINT.value)
  text = page.render(
    f"{backbone_flags.CHECKPOINT.value} - dinojax",
    [page.Fragment(title), *panels.of_folder(folder)],
  )
  with durable.atomic_write(out, out=folder) as file:
    file.write(page.encode(text))
  return out


def main(_) -> None:
  """Writes pictures, if they are wanted, and the page."""
  if backbone_flags.CHECKPOINT.value:
    if WORKDIR.value or not IMAGES.value or not OUT.value:
      raise errors.UserError(
        "--checkpoint=WEIGHTS needs --images=SOURCE and --out=FOLDER, and no --workdir"
      )
    folder = pathlib.Path(OUT.value).expanduser()
    write_pictures(backbone_flags.CHECKPOINT.value, folder)
    print(write_page_of_weights(folder))
    return
  if not WORKDIR.value:
    raise errors.UserError(
      "--workdir=RUN is missing; give the workdir of a training, or"
      " --checkpoint=WEIGHTS with --images=SOURCE"
    )
  runs = [read_run(workdir) for workdir in WORKDIR.value]
  if not OUT.value and len(runs) > 1:
    raise errors.UserError("--out=FILE is missing; try comparison.html")
  out = pathlib.Path(OUT.value or runs[0].path / run_page.NAME).expanduser()
  durable.check_file(str(out), flag="--out", example=run_page.NAME)
  if IMAGES.value and len(runs) > 1:
    raise errors.UserError("--images=SOURCE is for one run; give a single --workdir")
  if IMAGES.value:
    write_pictures(WORKDIR.value[0], runs[0].path / panels.FOLDER)
  run_page.write(runs, out)
  print(out)


if __name__ == "__main__":
  cli.run(main, on_interrupt="interrupted; no page is written", config=False)
