r"""Ingest: images from many sources into clean, deduplicated shards to train on.

  python -m dinojax.ingest --images=folder:/data/photos --images='tar:/data/web/*.tar' \
    --exclude=folder:/data/imagenet/val --out=/data/clean/1.0.0

--images and --exclude name a source each, and may be given several times; --help lists
the kinds.

OUT becomes a folder of ArrayRecord shards, which tfds.builder_from_directory opens,
too, with manifest.json (counts, shards, settings), report.html (pictures of dropped
images, with reasons) and dropped.csv (all of them). Train on it by
--config.data.sources='arrayrecord:OUT/*.array_record*'. Labels are kept, and equal
class names of several inputs are one class; captions and other metadata are not kept.

An image is read, checked, compared with all others by its hashes, and read again when
it is written. Of duplicates the largest is kept, or the first of the largest. The same
command resumes an ingest that was ended; the same inputs and settings give the same
bytes. Until all is done OUT does not exist: OUT.work holds what is done so far, and
OUT.json the settings.

Work runs on Apache Beam: in processes of this machine (--direct_num_workers=N, default
all cores), or where --runner and its own options say, on workers that find inputs and
OUT at the same paths.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import typing

from absl import flags

import dinojax
from dinojax import durable, errors
from dinojax.commands import backbone_flags, cli
from dinojax.curation import engine, inputs, jobs, manifest, steps, work_folder
from dinojax.data import images, sources

if typing.TYPE_CHECKING:
  from dinojax.curation import embedding

IMAGES = flags.DEFINE_multi_string("images", [], f"Source of images: {sources.USAGE}.")
EXCLUDE = flags.DEFINE_multi_string(
  "exclude", [], "Evaluation sets: duplicates of one of their images are dropped."
)
OUT = flags.DEFINE_string(
  "out", None, "Folder to make; as .../NAME/1.0.0 it is found as tfds:NAME:train."
)
flags.DEFINE_integer("min_side", 32, "Drop images whose shorter side has fewer pixels.")
flags.DEFINE_float(
  "max_aspect",
  6,
  "Drop images whose long side is over this many times the short one; 0: keep all.",
)
flags.DEFINE_integer(
  "max_pixels",
  50_000_000,
  "Drop images of more pixels, undecoded. A process may need 16 bytes per pixel; large"
  " JPEG files are decoded at a fraction of their size. Training reads images over"
  f" {images.MAX_PIXELS:,} pixels (JPEG: 4 times that) only by config.data.max_pixels;"
  " --shorter_side shrinks them.",
)
flags.DEFINE_bool("animated", False, "Keep animations; training sees the first frame.")
flags.DEFINE_integer(
  "shorter_side",
  0,
  "Shrink images to this shorter side in pixels, as JPEG, where it is longer; 0: keep"
  " their bytes.",
)
flags.DEFINE_integer("quality", 90, "JPEG quality of --shorter_side.")
flags.DEFINE_enum(
  "exact",
  "pixels",
  ["off", "bytes", "pixels"],
  "Drop exact duplicates: images with equal bytes, or with equal pixels, whatever the"
  " format and metadata.",
)
flags.DEFINE_integer(
  "near_bits",
  6,
  "Drop near duplicates: images whose 64-bit perceptual hashes differ in at most so"
  " many bits are compared by --near_difference; -1: off. More bits cost more: 6"
  " shuffle 28 tables, 4 shuffle 15.",
)
flags.DEFINE_float(
  "near_difference",
  5.5,
  "Mean difference of 8 x 8 thumbnails, of 255, up to which images are near"
  " duplicates.",
)
flags.DEFINE_float(
  "near_cosine",
  0,
  "Drop images whose embeddings by --checkpoint have at least this cosine similarity;"
  " 0: off.",
)
flags.DEFINE_integer(
  "sample", 0, "Keep this many images, evenly over clusters of embeddings; 0: all."
)
flags.DEFINE_integer(
  "clusters", 1000, "Number of clusters of embeddings, for --sample."
)
flags.DEFINE_integer(
  "records_per_shard", 32_000, "Images of a shard; more of them slow down single reads."
)
flags.DEFINE_integer("seed", 0, "Seed of clusters and samples.")
flags.DEFINE_string(
  "image_column",
  "",
  "Column of images in Parquet files; default: found by name and type.",
)
flags.DEFINE_string(
  "label_column", "", "Column of labels in Parquet files; default: `label`, if any."
)
ENDED = "ended; the same command resumes"
SETTINGS = tuple(field.name for field in dataclasses.fields(jobs.Settings))
# Beam has workers of its own.
SHARED = tuple(name for name in backbone_flags.NAMES if name != "workers")
for flag in SHARED:
  flags.declare_key_flag(flag)


def main(arguments: list[str]) -> None:
  """Makes OUT, or resumes to make it."""
  own = [*SETTINGS, *SHARED, IMAGES.name, EXCLUDE.name, OUT.name]
  options = engine.parse_options(arguments[1:], own)
  settings = jobs.Settings(**{name: flags.FLAGS[name].value for name in SETTINGS})
  check(settings)
  out = pathlib.Path(OUT.value).expanduser()
  work = out.with_name(f"{out.name}.work")
  job = jobs.Job(settings, out, work, backbone_flags.HANG_MINUTES.value)
  parts = inputs.plan(IMAGES.value, EXCLUDE.value, settings)
  network, weights = open_network(settings)
  given = {
    "images": IMAGES.value,
    "exclude": EXCLUDE.value,
    "parts": len(parts),
    "source": inputs.fingerprint(parts),
    **dataclasses.asdict(settings),
    "weights": weights,
    "network": dataclasses.asdict(network) if network else None,
    "dinojax": dinojax.__version__,
  }
  if work_folder.is_complete(job, given):
    engine.log(f"{out} is complete; nothing to do")
    return
  with work_folder.opened(job, given) as claim:
    if not out.exists():
      for line in inputs.skipped_files([*EXCLUDE.value, *IMAGES.value]):
        engine.log(line)
      steps.choose_images(job, parts, network, options)
      steps.write_output(job, parts, given, options, claim)
    durable.set_complete(out, complete=True)
    work_folder.remove(job)
  summarize(out)


def summarize(out: pathlib.Path) -> None:
  """Prints what a complete OUT holds."""
  found = json.loads((out / "manifest.json").read_text())
  reasons = manifest.counts_line(found["dropped"])
  shards = len(found["shards"])
  for line in (*found["classes"], *found["warnings"]):
    engine.log(line)
  engine.log(
    f"done; {out} holds {found['records']:,} images in {shards:,}"
    f" shard{'s' * (shards > 1)}; dropped: {reasons or 'none'}; see"
    f" {out / 'report.html'}"
  )


def check(settings: jobs.Settings) -> None:
  """Refuses values of flags that cannot work, before anything is read."""
  if not IMAGES.value:
    raise errors.UserError("--images=SOURCE is missing; try folder:PATH")
  if not OUT.value:
    raise errors.UserError("--out=FOLDER is missing; try /data/NAME/1.0.0")
  if pathlib.Path(OUT.value).name in ("", ".."):
    raise errors.UserError(f"--out={OUT.value} must end in the name of a new folder")
  if not errors.printable(OUT.value) == OUT.value:
    raise errors.UserError(
      f"--out={OUT.value} must be printable UTF-8, for those who read it; choose"
      " another name"
    )
  limits = {
    "min_side": (1, 1 << 20),
    "max_aspect": (0, 1 << 20),
    "max_pixels": (1, 1 << 40),
    "shorter_side": (0, 1 << 20),
    "quality": (1, 95),
    "near_bits": (-1, 16),
    "near_difference": (0, 255),
    "near_cosine": (0, 1),
    "clusters": (1, 1 << 20),
    "sample": (0, 1 << 40),
    "records_per_shard": (1, 1 << 24),
    "seed": (0, 1 << 30),
  }
  for name, (least, most) in limits.items():
    value = getattr(settings, name)
    if not least <= value <= most:
      raise errors.UserError(f"--{name}={value} must be within {least} and {most}")
  if 0 < settings.max_aspect < 1:
    raise errors.UserError(
      f"--max_aspect={settings.max_aspect} must be at least 1, or 0 to keep all"
    )
  needs = [name for name in ("near_cosine", "sample") if getattr(settings, name)]
  if needs and not backbone_flags.CHECKPOINT.value:
    raise errors.UserError(f"--{needs[0]} needs --checkpoint=WEIGHTS to embed images")
  if backbone_flags.CHECKPOINT.value and not needs:
    raise errors.UserError("--checkpoint is for --near_cosine or --sample; give one")


def open_network(settings: jobs.Settings) -> tuple[embedding.Network | None, str]:
  """The backbone that embeds images, checked, and the fingerprint of its weights."""
  if not (settings.near_cosine or settings.sample):
    return None, ""
  import jax

  from dinojax import sharding
  from dinojax.curation import embedding

  mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.local_devices()[:1])
  loaded = backbone_flags.load(mesh)
  network = embedding.Network(
    checkpoint=backbone_flags.CHECKPOINT.value,
    step=backbone_flags.STEP.value,
    heads=backbone_flags.HEADS.value,
    pool=backbone_flags.POOL.value,
    dtype=backbone_flags.DTYPE.value,
    feature=backbone_flags.feature(loaded),
    layers=backbone_flags.LAYERS.value,
    **backbone_flags.image_sizes(loaded),
    batch_size=backbone_flags.batch_size(1),
  )
  return network, loaded.fingerprint


if __name__ == "__main__":
  cli.run(
    main,
    on_interrupt=ENDED,
    config=False,
    pass_unknown=True,
  )
