r"""Images from many places into shards to train on: checked, and without duplicates.

  python -m dinojax.ingest --images=folder:/data/photos --images='tar:/data/web/*.tar' \
    --exclude=folder:/data/imagenet/val --out=/data/clean/1.0.0

--images and --exclude may be given several times, each
  folder:PATH           images below a folder, by ending; sub-folders are classes
  tar:GLOB              tar files of img2dataset or webdataset; labels from .cls
  parquet:GLOB          Parquet files with a column of encoded images
  arrayrecord:GLOB      ArrayRecord files of images or of tf.train.Example
  tfds:NAME:SPLIT       a prepared dataset of tensorflow-datasets

OUT becomes a folder of ArrayRecord shards that tfds.builder_from_directory opens, too,
with manifest.json (counts, shards, settings), report.html (pictures of what was
dropped, and why) and dropped.csv. It appears when all is done. Train on it by
--config.data.sources='arrayrecord:OUT/*.array_record*'. Labels are kept, and equal
names of several inputs are one class; captions and other metadata are not kept.

An image is read, looked at once, compared with all others by its hashes, and read again
when it is written. Of duplicates the largest stays, or the first of the largest. A run
that was ended goes on with the same command; the same inputs and settings give the same
bytes.

Work runs on Apache Beam: in processes of this machine (--direct_num_workers=N, default
all cores), or where --runner and its own options say, on workers that find inputs and
OUT at the same paths.
"""

import dataclasses
import functools
import pathlib
import signal
import sys

import jax
from absl import flags

import dinojax
from dinojax import durable, errors, sharding
from dinojax.commands import backbone_flags, cli
from dinojax.curation import (
  claims,
  collisions,
  components,
  embedding,
  engine,
  examine,
  inputs,
  jobs,
  manifest,
  output,
  report,
)

IMAGES = flags.DEFINE_multi_string("images", [], "Where images come from; see above.")
EXCLUDE = flags.DEFINE_multi_string(
  "exclude", [], "Evaluation sets: what is close to one of their images is dropped."
)
OUT = flags.DEFINE_string(
  "out", None, "Folder to make; as .../NAME/1.0.0 it is found as tfds:NAME:train."
)
flags.DEFINE_integer("min_side", 32, "Drop images with a shorter side than that.")
flags.DEFINE_float(
  "max_aspect", 6, "Drop images so many times longer than wide; 0: keep."
)
flags.DEFINE_integer("max_pixels", 50_000_000, "Drop images of more pixels, undecoded.")
flags.DEFINE_bool("animated", False, "Keep animations, of which training sees a frame.")
flags.DEFINE_integer(
  "shorter_side",
  0,
  "Shrink images whose shorter side is over that, as JPEG; 0: bytes as they are.",
)
flags.DEFINE_integer("quality", 90, "JPEG quality of --shorter_side.")
flags.DEFINE_enum(
  "exact",
  "pixels",
  ["off", "bytes", "pixels"],
  "Drop images equal to another in bytes, or in decoded pixels, which finds them with"
  " other metadata, too.",
)
flags.DEFINE_integer(
  "near_bits",
  6,
  "Drop near duplicates: 64-bit perceptual hashes that differ in at most so many bits"
  " make a pair, which --near_difference decides; -1: off. Each more costs: for 6, 28"
  " tables are shuffled, and 15 for 4.",
)
flags.DEFINE_float(
  "near_difference",
  5.5,
  "The mean difference, of 255, up to which 8 x 8 thumbnails are of one image.",
)
flags.DEFINE_float(
  "near_cosine",
  0,
  "Drop images whose embeddings by --checkpoint have at least this cosine; 0: off.",
)
flags.DEFINE_integer("sample", 0, "Keep only so many, evenly over clusters; 0: all.")
flags.DEFINE_integer("clusters", 1000, "Of embeddings by --checkpoint, for --sample.")
flags.DEFINE_integer("records_per_shard", 32_000, "More make single reads slower.")
flags.DEFINE_integer("seed", 0, "Of clusters and samples.")
flags.DEFINE_string("image_column", "", "Of Parquet; default the one that plainly is.")
flags.DEFINE_string("label_column", "", "Of Parquet; default `label`, if there is one.")
ENDED = "ended; the same command goes on"
SETTINGS = tuple(field.name for field in dataclasses.fields(jobs.Settings))
EMBEDDING = tuple(name for name in backbone_flags.NAMES if name != "workers")
for flag in EMBEDDING:
  flags.declare_key_flag(flag)


def main(arguments: list[str]) -> None:
  """Makes OUT, or what is missing of it."""
  signal.signal(signal.SIGTERM, end)
  own = [*SETTINGS, *EMBEDDING, IMAGES.name, EXCLUDE.name, OUT.name]
  options = engine.parse(arguments[1:], own)
  settings = jobs.Settings(**{name: flags.FLAGS[name].value for name in SETTINGS})
  check(settings)
  out = pathlib.Path(OUT.value).expanduser()
  job = jobs.Job(settings, out, out.with_name(f"{out.name}.work"))
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
  with claims.begun(job, given):
    if out.exists():
      told = f"{out} is complete; nothing to do"
    else:
      for line in inputs.left_out([*EXCLUDE.value, *IMAGES.value]):
        engine.say(line)
      curate(job, parts, network, options)
      found = finish(job, parts, given, options)
      reasons = manifest.listed(found["dropped"])
      shards = len(found["shards"])
      told = "\n".join(
        [
          *found["classes"],
          f"done; {out} holds {found['records']:,} images in {shards:,}"
          f" shard{'s' * (shards > 1)}; dropped: {reasons or 'none'}; see"
          f" {out / 'report.html'}",
        ]
      )
    durable.set_complete(out, complete=True)
    claims.remove_work(job)
  engine.say(told)


def end(*_) -> None:
  """Ends the process at a SIGTERM, with the processes it has started."""
  engine.say(ENDED)
  sys.exit(128 + signal.SIGTERM)


def check(settings: jobs.Settings) -> None:
  """Refuses flags that make no sense, before anything is read."""
  if not IMAGES.value:
    raise errors.UserError("--images=SOURCE is missing; try folder:PATH")
  if not OUT.value:
    raise errors.UserError("--out=FOLDER is missing; try /data/NAME/1.0.0")
  limits = {
    "min_side": (1, 1 << 20),
    "max_aspect": (0, 1 << 20),
    "max_pixels": (1, examine.images.MAX_PIXELS),
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


def curate(
  job: jobs.Job, parts: list[jobs.Part], network: embedding.Network | None, options
) -> None:
  """Looks at all images, and decides which stay; each step leaves its drops."""
  engine.each(
    functools.partial(examine.scan, job=job),
    [part for part in parts if not job.path("scan", part.number).exists()],
    options=options,
    label="looking at images",
    count=engine.files_in(job.work / "scan"),
  )
  images = sum(len(job.rows(part.number)) for part in parts)
  if job.settings.exact != "off":
    collisions.exact(job, parts, images, options)
  if job.settings.near_bits >= 0:
    pairs = collisions.near(job, parts, images, options)
    components.settle(
      *(job, parts, pairs, options),
      **dict(step="near", reason="near duplicate", compare=components.thumbs_alike),
    )
  if network:
    engine.each(
      functools.partial(embedding.compute, job=job, network=network),
      [part for part in parts if not job.path("features", part.number).exists()],
      # One process has the accelerators.
      options=engine.within_this_process(options),
      label="embedding images",
      count=engine.files_in(job.work / "features"),
    )
  if job.settings.near_cosine:
    pairs = embedding.candidates(job, parts, images, options)
    components.settle(
      *(job, parts, pairs, options),
      **dict(step="embedding", reason="similar embedding", compare=embedding.alike),
    )
  if job.settings.sample:
    embedding.sample(job, parts, options)


def finish(job: jobs.Job, parts: list[jobs.Part], given: dict, options) -> dict:
  """Writes the shards and what tells of them, and gives OUT its name; the manifest."""
  counts = {
    part.number: len(job.survivors(part.number)) for part in parts if not part.excluded
  }
  plan = output.layout(job, counts)
  found = manifest.totals(job, parts)
  if not plan:
    claims.remove_work(job)  # nothing in it is of use: the claim goes, too
    reasons = manifest.listed(manifest.dropped(found))
    raise errors.UserError(
      f"no image is left of --images ({reasons or 'none was found'}); --help tells"
      " what is dropped, and by which option"
    )
  folder = job.work / "out"
  class_names = inputs.class_names(parts)
  names, labels = manifest.classes(found["labels"], class_names)
  engine.each(
    functools.partial(output.write, job=job, parts=parts, plan=plan, labels=labels),
    [i for i in range(len(plan)) if not job.path("shards", i, "json").exists()],
    options=options,
    label="writing shards",
    count=engine.files_in(job.work / "shards"),
  )
  shards = [output.described(job, parts, plan, shard) for shard in range(len(plan))]
  of_classes = manifest.told_classes(given, found, class_names, len(names))
  told = manifest.make(given, found, shards, of_classes)
  with durable.os_errors_as_user_errors(job.out):
    output.write_metadata(job, folder, shards, names)
  report.write(job, parts, told, folder)
  job.save(folder / "manifest.json", told)
  with durable.os_errors_as_user_errors(job.out):
    folder.replace(job.out)
    durable.fsync(job.out.parent)
  return told


if __name__ == "__main__":
  cli.run(
    main,
    on_interrupt=ENDED,
    config=False,
    pass_unknown=True,
  )
