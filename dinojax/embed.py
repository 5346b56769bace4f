r"""Features of every image of a source, by a frozen backbone, in files of any size.

  python -m dinojax.embed --checkpoint=runs/photos --images=folder:/data/photos \
    --out=features.parquet

OUT is a folder of Parquet files (.parquet), a NumPy array with its other columns in
CSV (.npy), or a Zarr 3 group (.zarr): index, name, label, valid, feature, and with
--patches patches. Rows are the images in the order of the source. A corrupt image keeps
its row, with valid=False and features of NaN. --images is a source as in training.

Rows are written in parts of one batch or, for large sets, of up to 16 batches. After a
kill the same command resumes with the parts that are missing.
On several hosts, give each the same command with --num_processes=N --process_id=I; they
share the parts, need a common folder but no connection, and none waits for another.
--batch_size is of each of them.
"""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
import tqdm
from absl import flags
from jax.sharding import Mesh

import dinojax
from dinojax import backbone, durable, errors, feature_files, sharding
from dinojax.commands import backbone_flags, cli, image_flags
from dinojax.data import bad_records, eval_batches, sources
from dinojax.reporting import console
from dinojax.runtime import compiled, ownership, processes, workdir

IMAGES = flags.DEFINE_string("images", None, f"Source of images: {sources.USAGE}.")
OUT = flags.DEFINE_string("out", None, "What to write: *.parquet, *.npy or *.zarr.")
PATCHES = flags.DEFINE_bool("patches", False, "Writes the patch features, too.")
MAX_PIXELS = image_flags.define_max_pixels()
LEAST_BATCHES = 16  # of a small set, unless --batch_size is given
for flag in (
  *(*backbone_flags.NAMES, "max_pixels"),
  *("num_processes", "process_id", "coordinator", "multihost", "join_seconds"),
):
  flags.declare_key_flag(flag)

# In the manifest: each fingerprint with the flag that it is of, and the entries that
# explain its change; then entries that may differ, or differ with another one alone.
FINGERPRINTS = {
  "weights": ("checkpoint", ("checkpoint", "step", "heads", "pool")),
  "source": ("images", ("images", "rows")),
}
FREE = ("checkpoint", "step", "heads", "pool", "images", "rows", "sizes")
FREE = (*FREE, "rows_per_part", "complete")
SHOWN = ("step", "heads", "pool", "resize", "crop", "feature", "layers", "dtype")
LINES_EVERY = 30  # seconds between lines of progress, without a terminal
POLL = 2  # seconds


def main(_) -> None:
  """Computes the features that are missing, and finishes when none is."""
  number, count = processes.join(apart=True)
  out = feature_files.check_path(OUT.value, flag="--out")
  if not IMAGES.value:
    raise errors.UserError("--images=SOURCE is missing; try folder:PATH")
  source = sources.open_source(IMAGES.value, field="--images")
  compiled.keep_programs("auto")
  # A whole copy of the weights for each device, which then waits for no other.
  mesh = sharding.make_mesh(data=-1, fsdp=1, devices=jax.local_devices())
  model = backbone_flags.load(mesh)
  image_sizes = backbone_flags.image_sizes(model)
  choice = {
    "feature": backbone_flags.feature(model),
    "layers": backbone_flags.LAYERS.value,
    "patches": PATCHES.value,
  }
  least = -(-len(source) // LEAST_BATCHES)
  batch_size = backbone_flags.batch_size(mesh.size, at_most=least)
  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    compute, sizes = compile_features(model, mesh, batch_size, image_sizes, choice)
    about = {
      **backbone_flags.origin(model),
      "weights": model.fingerprint,
      "images": IMAGES.value,
      "source": source.fingerprint,
      "rows": len(source),
      **image_sizes,
      **choice,
      "dtype": backbone_flags.DTYPE.value,
      "max_pixels": MAX_PIXELS.value,
      "sizes": sizes,
      "rows_per_part": feature_files.rows_per_part(sizes, batch_size, len(source)),
      "dinojax": dinojax.__version__,
    }
    shown = ", ".join(f"{k} {x}" for k, x in about.items() if k in SHOWN and x)
    console.say(f"{len(source):,} images of {IMAGES.value}; {shown}")
    stack.enter_context(
      ownership.owned(out.parent, out.name, label=f"--out={out}", share=(number, count))
    )
    # A run that resumes may have another batch size, but its parts stay as they are.
    manifest = durable.open_manifest(
      out, about, differences=differences, paths=feature_files.paths(out)
    )
    shape = feature_files.Shape(
      rows=len(source), rows_per_part=manifest["rows_per_part"], sizes=sizes
    )
    files = feature_files.FORMATS[out.suffix](out, shape)
    done, mine = files.done(), range(number, shape.parts, count)
    with durable.locked(out):
      if not files.finished():  # perhaps no more: somebody has removed a part
        durable.set_complete(out, complete=False)
    if done and not files.finished():
      console.say(f"resumes: {len(done):,} of {shape.parts:,} parts are there")
    if missing := [k for k in mine if k not in done]:
      batches = eval_batches.open_batches(
        source,
        batch_size=batch_size,
        rows=range(batch_size),
        **image_sizes,
        workers=backbone_flags.WORKERS.value,
        spans=[shape.span(k) for k in missing],
        max_pixels=MAX_PIXELS.value,
        layout=model.layout,
      )
      watch = backbone_flags.open_watchdog()
      bar = _progress(shape, mine, missing, number)
      with contextlib.closing(batches), contextlib.closing(watch), bar:
        results = ahead(batches, compute, watch.step_done)
        log = bad_records.Log("row not valid, its features are NaN")
        advance = console.advancer(bar)
        for k in missing:
          files.write(k, collect(results, source, shape, k, advance, log))
    elif files.finished():
      console.say("nothing was missing")
    complete(files, number)


def compile_features(
  model: backbone.Backbone, mesh: Mesh, batch_size: int, image_sizes: dict, choice: dict
) -> tuple[Callable[[np.ndarray], dict[str, jax.Array]], dict[str, tuple[int, ...]]]:
  """A function of a batch of this process's images, and the shape of a row of each.

  Args:
    model: the backbone.
    mesh: the local devices.
    batch_size: images of a batch.
    image_sizes: {"resize", "crop"}.
    choice: the last arguments of `features`.
  """
  apply = jax.jit(
    functools.partial(features, model.module, **choice),
    out_shardings=sharding.batch_sharding(mesh),
  )
  side, (channels, dtype) = image_sizes["crop"], model.layout
  images = jax.ShapeDtypeStruct((batch_size, side, side, channels), dtype)
  shapes = jax.eval_shape(apply, model.params, images)

  def compute(images):
    local = {"image": images}
    put = sharding.put_batch(mesh, local, range(batch_size), batch_size)
    return apply(model.params, put["image"])

  return compute, {name: x.shape[1:] for name, x in shapes.items()}


def differences(there: dict, now: dict) -> list[str]:
  """How the manifest of an output differs from this run's, in the user's words."""
  differing = [name for name in {**there, **now} if there.get(name) != now.get(name)]

  def changes(names):
    return [
      f"{'' if name in ('rows', 'dinojax') else '--'}{name}:"
      f" {there.get(name)} then, {now.get(name)} now"
      for name in names
      if name in differing
    ]

  found = []
  for name, (flag, about) in FINGERPRINTS.items():
    if name in differing and not changes(about):
      pair = str(there.get(name)), now[name]
      how = workdir.data_difference(*pair) if name == "source" else "other values"
      found.append(f"--{flag}={now[flag]} has changed: {how or 'other times of files'}")
    elif name in differing:
      found += changes(about)
  rest = (name for name in differing if name not in (*FREE, *FINGERPRINTS))
  return found + changes(rest)


def features(
  module, params, images: jax.Array, *, feature: str, layers: int, patches: bool
) -> dict[str, jax.Array]:
  """{"feature": [B, F]} of images, perhaps "patches": [B, P, D]; float32."""
  seen = backbone.apply(module, params, images, by_block=layers > 1)
  result = {"feature": backbone.select_columns(seen, backbone.columns(feature, layers))}
  return result | ({"patches": seen.patches} if patches else {})


def ahead(
  batches: Iterable[dict], compute: Callable, progress: Callable[[], None]
) -> Iterator[dict]:
  """Yields batches with their results, while the device works on the next one."""
  previous = None
  for batch in batches:
    progress()
    current = batch | compute(batch["image"])
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
  log: bad_records.Log,
) -> feature_files.Part:
  """Returns part k, and logs the images that are corrupt or whose features overflow.

  Args:
    results: of `ahead`, where the part begins.
    source: for the names.
    shape: of all rows.
    k: the part.
    advance: called with the number of rows of each batch.
    log: of the images.
  """
  start, stop = shape.span(k)
  rows = stop - start
  kinds = {"index": np.int64, "label": np.int32, "valid": np.bool_}
  columns = {name: np.empty(rows, kind) for name, kind in kinds.items()}
  columns |= {k: np.empty((rows, *x), np.float32) for k, x in shape.sizes.items()}
  filled = 0
  while filled < rows:
    batch = next(results)
    size = min(len(batch["index"]), rows - filled)
    for name, column in columns.items():
      column[filled : filled + size] = np.asarray(batch[name])[:size]
    filled += size
    for _, message in bad_records.messages(source, batch["bad_records"]):
      log.add(message)
    advance(size)
  names = [source.name(i) for i in columns["index"].tolist()]
  valid = columns["valid"]
  finite = [np.isfinite(columns[name].reshape(rows, -1)).all(1) for name in shape.sizes]
  for row in np.flatnonzero(valid & ~np.all(finite, axis=0)):
    log.add(f"{names[row]}: they are not finite")
    valid[row] = False
  for name in shape.sizes:
    columns[name][~valid] = np.nan
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
