"""Evaluations of a frozen backbone, by what tasks read; behind flags of evaluate.py.

Each function computes what its tasks share, once, and yields them by name.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

import dinojax
from dinojax import backbone
from dinojax.commands import backbone_flags, evaluation_flags
from dinojax.data import sources
from dinojax.evals import (
  attentive,
  cache,
  dense_sources,
  dense_tasks,
  features,
  labelled,
  patches,
  sliding,
  tasks,
)
from dinojax.reporting import console


def columns(name: str, loaded: backbone.Backbone) -> tuple:
  """The features that a task reads, as of `backbone.columns`."""
  if name == "linear":
    return tasks.Linear.columns(loaded.module.depth)
  return backbone.columns(backbone_flags.feature(loaded), backbone_flags.LAYERS.value)


def extract(
  name: str,
  source: sources.Source,
  loaded: backbone.Backbone,
  present: tuple,
  mesh: Mesh,
) -> features.Bank:
  """The columns `present` of all images of a source."""
  sizes = backbone_flags.image_sizes(loaded)
  batch_size = backbone_flags.batch_size(mesh.size)

  @jax.jit
  def apply(params, images):
    return backbone.image_columns(loaded.module, params, images, present)

  def compute():
    watch = backbone_flags.open_watchdog()
    with contextlib.closing(watch):
      bank = features.extract(
        source,
        apply,
        loaded.params,
        mesh=mesh,
        batch_size=batch_size,
        workers=backbone_flags.WORKERS.value,
        max_pixels=evaluation_flags.MAX_PIXELS.value,
        layout=loaded.layout,
        description=f"features of --{name}",
        progress=watch.step_done,
        **sizes,
      )
    features.check(bank, source)
    return bank

  return cache.cached(
    compute,
    evaluation_flags.CACHE.value,
    what=f"features of --{name}, {len(source):,} images",
    made_of={
      "weights": loaded.fingerprint,
      "source": source.fingerprint,
      "columns": present,
      "dtype": loaded.module.dtype,
      "batch_size": batch_size,
      "max_pixels": evaluation_flags.MAX_PIXELS.value,
      "dinojax": dinojax.__version__,
      **sizes,
    },
    shape=(
      math.ceil(len(source) / batch_size),
      batch_size,
      len(present) * loaded.module.width,
    ),
    mesh=mesh,
  )


def evaluate_features(
  chosen: dict[str, tasks.Task],
  opened: dict[str, sources.Source],
  loaded: backbone.Backbone,
  mesh: Mesh,
) -> Iterator[tuple[str, Callable[[], dict]]]:
  """Computes features of all sources; yields tasks by name, to be called."""
  wanted = {name: columns(name, loaded) for name in chosen}
  present = tuple(sorted({column for some in wanted.values() for column in some}))
  # Small sets first: what cannot work with them is known soon.
  banks = {
    name: extract(name, opened[name], loaded, present, mesh)
    for name in sorted(opened, key=lambda name: len(opened[name]))
  }
  highest = max(int(bank.labels.max()) for bank in banks.values())
  class_names, width = labelled.class_names(opened, highest), loaded.module.width
  about = dict(class_names=class_names, width=width, mesh=mesh)
  for name, task in chosen.items():
    some = {k: features.select(x, present, wanted[name]) for k, x in banks.items()}
    numbers = f"{len(wanted[name]) * width:,} features each"
    console.say(f"{name}: {image_counts(opened)}, {numbers}")
    yield name, functools.partial(task.evaluate, some, **about)


def evaluate_tokens(
  chosen: dict[str, dense_tasks.Attentive],
  opened: dict[str, sources.Source],
  loaded: backbone.Backbone,
  mesh: Mesh,
) -> Iterator[tuple[str, Callable[[], dict]]]:
  """Yields tasks that compute patches of labelled images themselves, step by step."""
  with contextlib.closing(backbone_flags.open_watchdog()) as watch:
    reading = dict(workers=backbone_flags.WORKERS.value, progress=watch.step_done)
    labels = labelled.read(opened["train"], name="--train", **reading)
    class_names = labelled.class_names(opened, int(labels.max(initial=-1)))
    network = attentive.Network(
      patch_tokens(loaded),
      loaded.params,
      width=loaded.module.width,
      how=dict(
        mesh=mesh,
        batch_size=backbone_flags.batch_size(mesh.size),
        max_pixels=evaluation_flags.MAX_PIXELS.value,
        layout=loaded.layout,
        **backbone_flags.image_sizes(loaded),
        **reading,
      ),
    )
    for name, task in chosen.items():
      console.say(f"{name}: {image_counts(opened)}, {len(class_names):,} classes")
      yield name, functools.partial(task.evaluate, network, opened, class_names)


def patch_tokens(loaded: backbone.Backbone) -> Callable:
  """Jitted (params, uint8 [B, S, S, 3]) -> patch tokens [B, N, D]."""

  @jax.jit
  def apply(params, images):
    return backbone.apply(loaded.module, params, images).patches

  return apply


def evaluate_maps(
  chosen: dict[str, dense_tasks.Task],
  opened: dict[str, sources.DenseSource],
  loaded: backbone.Backbone,
  mesh: Mesh,
) -> Iterator[tuple[str, Callable[[], dict]]]:
  """Counts classes of label maps; yields tasks by name, to be called."""
  with contextlib.closing(backbone_flags.open_watchdog()) as watch:
    reading = dict(workers=backbone_flags.WORKERS.value, progress=watch.step_done)
    class_names = dense_sources.class_names(opened, **reading)
    classes, grid = len(class_names), patches_of_image(loaded)
    most = min(task.most_images(grid, classes) for task in chosen.values())
    reader = open_reader(loaded, mesh, most=most, **reading)
    seen = dense_tasks.Seen(
      reader,
      loaded.module.width,
      functools.cache(lambda: remember(reader, opened["train"], classes)),
    )
    for name, task in chosen.items():
      console.say(f"{name}: {image_counts(opened)}, {classes} classes")
      yield name, functools.partial(task.evaluate, seen, opened, class_names)


def evaluate_depth(
  chosen: dict[str, dense_tasks.Depth],
  opened: dict[str, sources.DepthSource],
  loaded: backbone.Backbone,
  mesh: Mesh,
) -> Iterator[tuple[str, Callable[[], dict]]]:
  """Yields tasks of depth by name, to be called."""
  with contextlib.closing(backbone_flags.open_watchdog()) as watch:
    reading = dict(workers=backbone_flags.WORKERS.value, progress=watch.step_done)
    for name, task in chosen.items():
      most = task.most_images(patches_of_image(loaded))
      reader = open_reader(loaded, mesh, most=most, **reading)
      seen = dense_tasks.Seen(reader, loaded.module.width, None)
      console.say(f"{name}: {image_counts(opened)}")
      yield name, functools.partial(task.evaluate, seen, opened)


def patches_of_image(loaded: backbone.Backbone) -> int:
  """N of a square of --crop pixels."""
  side = backbone_flags.image_sizes(loaded)["crop"]
  return (side // loaded.module.patch_size) ** 2


def open_reader(
  loaded: backbone.Backbone, mesh: Mesh, *, most: int, **reading
) -> patches.Reader:
  """The network for tasks of maps; most: images of a batch, if no flag says."""
  side = backbone_flags.image_sizes(loaded)["crop"]
  apply, patch = patch_tokens(loaded), loaded.module.patch_size
  if (window := evaluation_flags.WINDOW.value) is not None:
    sliding.check(window, field="--window", side=side, patch_size=patch)
    apply = sliding.patch_tokens(apply, window=window, patch_size=patch)
  return patches.Reader(
    apply,
    loaded.params,
    patch_size=patch,
    side=side,
    mesh=mesh,
    batch_size=backbone_flags.batch_size(mesh.size, at_most=most),
    max_pixels=evaluation_flags.MAX_PIXELS.value,
    layout=loaded.layout,
    **reading,
  )


def remember(
  reader: patches.Reader, train: sources.DenseSource, num_classes: int
) -> patches.Memory:
  """Patches of --train with soft labels."""
  memory = patches.remember(
    reader,
    train,
    num_classes=num_classes,
    most=evaluation_flags.SEGMENTATION_MEMORY.value,
    seed=evaluation_flags.SEED.value,
    description="patches of --train",
  )
  console.say(f"remembers {patches.count(memory):,} patches of --train")
  return memory


def image_counts(opened: dict[str, sources.Source]) -> str:
  """How many images there are of each source."""
  return ", ".join(f"{len(x):,} images of --{k}" for k, x in opened.items())
