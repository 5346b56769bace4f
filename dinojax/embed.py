r"""Features of every image of a source, by a frozen backbone, in files of any size.

  python -m dinojax.embed --checkpoint=runs/photos --images=folder:/data/photos \
    --out=features.parquet

OUT is a folder of Parquet files (.parquet), a NumPy array with its other columns in
CSV (.npy), or a Zarr 3 group (.zarr): index, name, label, valid, feature, and with
--patches patches. Rows are the images in the order of the source. One that cannot be
read keeps its row, with features of NaN. --images is one of config.data.sources.

Rows are written in parts: a kill loses the part at hand, and the same command goes on.
On several hosts, give each the same command with --num_processes=N --process_id=I; they
share the parts, need a common folder but no connection, and none waits for another.
--batch_size is of each of them.
"""

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags

import dinojax
from dinojax import backbone, durable, errors, feature_files, sharding
from dinojax.commands import backbone_flags, cli
from dinojax.data import bad_records, eval_batches, sources
from dinojax.reporting import console
from dinojax.runtime import processes

IMAGES = flags.DEFINE_string(
  "images",
  None,
  f"Source of images: {sources.USAGE}.",
)
OUT = flags.DEFINE_string("out", None, "What to write: *.parquet, *.npy or *.zarr.")
PATCHES = flags.DEFINE_bool("patches", False, "Writes the patch features as well.")
for flag in (
  *backbone_flags.NAMES,
  *("num_processes", "process_id", "coordinator", "multihost", "join_seconds"),
):
  flags.declare_key_flag(flag)

# Of the manifest: fingerprints, each with what it is of and what tells of that; then
# what may differ, or cannot unless something else does.
FINGERPRINTS = {
  "weights": ("checkpoint", ("checkpoint", "step", "heads", "pool")),
  "source": ("images", ("images", "rows")),
}
FREE = ("checkpoint", "step", "heads", "pool", "images", "rows", "sizes")
FREE = (*FREE, "rows_per_part", "complete")
LINES_EVERY = 30  # seconds between lines of progress, without a terminal
POLL = 2  # seconds


def main(_) -> None:
  """Computes what is missing of the features, and finishes when nothing is."""
  number, count = processes.join(apart=True)
  out = feature_files.check_path(OUT.value, flag="--out")
  if not IMAGES.value:
    raise errors.UserError("--images=SOURCE is missing; try folder:PATH")
  source = sources.open_source(IMAGES.value, field="--images")
  # A whole copy of the weights for each device, which then waits for no other.
  mesh = sharding.make_mesh(data=-1, fsdp=1, devices=jax.local_devices())
  model = backbone_flags.load(mesh)
  transform = backbone_flags.image_sizes(model)
  choice = {
    "feature": backbone_flags.feature(model),
    "layers": backbone_flags.LAYERS.value,
    "patches": PATCHES.value,
  }
  batch_size, side = backbone_flags.batch_size(mesh.size), transform["crop"]
  with jax.set_mesh(mesh):
    compute = jax.jit(
      functools.partial(features, model.module, **choice),
      out_shardings=sharding.batch_sharding(mesh),
    )
    images = jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.uint8)
    sizes = {
      name: x.shape[1:]
      for name, x in jax.eval_shape(compute, model.params, images).items()
    }
    manifest = {
      **backbone_flags.origin(model),
      "weights": model.fingerprint,
      "images": IMAGES.value,
      "source": source.fingerprint,
      "rows": len(source),
      **transform,
      **choice,
      "dtype": backbone_flags.DTYPE.value,
      "sizes": sizes,
      "rows_per_part": feature_files.rows_per_part(sizes, batch_size),
      "dinojax": dinojax.__version__,
    }
    # A run that goes on may have another batch size, but its parts stay as they are.
    manifest = durable.open_manifest(out, manifest, differences=differences)
    shape = feature_files.Shape(
      rows=len(source), rows_per_part=manifest["rows_per_part"], sizes=sizes
    )
    files = feature_files.FORMATS[out.suffix](out, shape)

    def run(images):
      local = {"image": images}
      put = sharding.put_batch(mesh, local, range(batch_size), batch_size)
      return compute(model.params, put["image"])

    done, mine = files.done(), range(number, shape.parts, count)
    with durable.locked(out):
      if not files.finished():  # perhaps no more: somebody has removed a part
        durable.set_complete(out, complete=False)
    if missing := [k for k in mine if k not in done]:
      batches = eval_batches.open_batches(
        source,
        batch_size=batch_size,
        rows=range(batch_size),
        **transform,
        workers=backbone_flags.WORKERS.value,
        spans=[shape.span(k) for k in missing],
      )
      with contextlib.closing(batches), _progress(shape, mine, missing, number) as bar:
        results, advance = ahead(batches, run), console.advancer(bar)
        for k in missing:
          files.write(k, collect(results, source, shape, k, advance))
    elif files.finished():
      console.say("nothing was missing")
    complete(files, number)


def differences(there: dict, now: dict) -> list[str]:
  """What sets the manifest of an output apart from this run's, in the user's words."""
  differing = [name for name in {**there, **now} if there.get(name) != now.get(name)]

  def tell(names):
    return [
      f"{'' if name in ('rows', 'dinojax') else '--'}{name}:"
      f" {there.get(name)} then, {now.get(name)} now"
      for name in names
      if name in differing
    ]

  said = []
  for name, (flag, about) in FINGERPRINTS.items():
    if name in differing:
      said += tell(about) or [f"--{flag}={now[flag]} was something else then"]
  return said + tell(name for name in differing if name not in (*FREE, *FINGERPRINTS))


def features(
  module, params, images: jax.Array, *, feature: str, layers: int, patches: bool
) -> dict[str, jax.Array]:
  """{"feature": [B, F]} of uint8 images, perhaps "patches": [B, P, D]; float32."""
  seen = backbone.apply(module, params, images, by_block=layers > 1)
  result = {"feature": backbone.take(seen, backbone.columns(feature, layers))}
  return result | ({"patches": seen.patches} if patches else {})


def ahead(batches: Iterable[dict], run: Callable) -> Iterator[dict]:
  """Yields batches with their results, while the device works on the next one."""
  previous = None
  for batch in batches:
    current = batch | run(batch["image"])
    if previous:
      yield previous
    previous = current
  yield previous


def collect(
  results: Iterator[dict],
  source: sources.Source,
  shape: feature_files.Shape,
  k: int,
  advance: Callable[[int], None],
) -> feature_files.Part:
  """Takes the results of part k, and names the images that cannot be read.

  Args:
    results: of `ahead`, where the part begins.
    source: for the names.
    shape: of all rows.
    k: the part.
    advance: told the number of rows of each batch.
  """
  start, stop = shape.span(k)
  rows = stop - start
  kinds = {"index": np.int64, "label": np.int32, "valid": np.bool_}
  columns = {name: np.empty(rows, kind) for name, kind in kinds.items()}
  for name, size in shape.sizes.items():
    columns[name] = np.empty((rows, *size), np.float32)
  filled = 0
  while filled < rows:
    batch = next(results)
    size = min(len(batch["index"]), rows - filled)
    for name, column in columns.items():
      column[filled : filled + size] = np.asarray(batch[name])[:size]
    filled += size
    for _, message in bad_records.messages(source, batch["bad_records"]):
      logging.warning("corrupt image, its features are NaN: %s", message)
    advance(size)
  names = [source.name(i) for i in columns["index"].tolist()]
  for row in np.flatnonzero(~columns["valid"]):
    for name in shape.sizes:
      columns[name][row] = np.nan
  return feature_files.Part(name=names, **columns)


def complete(files, number: int) -> None:
  """Finishes the files once all parts are there.

  Of processes that stay apart, whichever sees all parts does: none can wait for others,
  which may come much later. Processes that JAX has joined must end together. They wait
  for the files, for as long as it takes, and the first one finishes.
  """
  joined = jax.process_count() > 1
  while left := files.shape.parts - len(files.done()):
    if not joined:
      console.say(f"{left} parts of {files.out} are left to other processes")
      return
    time.sleep(POLL)
  if not joined or number == 0:
    with durable.locked(files.out):
      files.finish()
      durable.set_complete(files.out, complete=True)
  while not files.finished():
    time.sleep(POLL)
  console.say(f"done; {files.out} holds {files.shape.rows:,} rows")


def _progress(shape, mine, missing, number: int) -> tqdm.tqdm:
  """A bar of this process's images; without a terminal, a line now and then."""
  total, left = (
    sum(stop - start for start, stop in map(shape.span, parts))
    for parts in (mine, missing)
  )
  line = "{percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]\n"
  terminal = sys.stderr.isatty()
  return tqdm.tqdm(
    total=total,
    initial=total - left,
    unit=" images",
    disable=number > 0,
    mininterval=0.1 if terminal else LINES_EVERY,
    maxinterval=10 if terminal else LINES_EVERY,
    bar_format=None if terminal else line,
  )


if __name__ == "__main__":
  cli.run(main, on_interrupt="ended; the same command resumes", config=False)
