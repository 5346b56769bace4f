"""Input of a host that feeds its devices: images, cores, bytes and memory it takes.

Arithmetic on a plan of the step, and one measurement: the time that one core of this
machine takes for the crops of an image, from images like those of the run.
"""

import contextlib
import itertools
import logging
import math
import time

import numpy as np

from dinojax import errors
from dinojax.data import (
  bad_records,
  images,
  layouts,
  mixture,
  sources,
  train_batches,
)

SECONDS = 10  # that a measurement takes, and at least three batches
SAMPLES = 256  # records whose size is measured


class Readable:
  """The records of a source that can be read, for a measurement."""

  def __init__(self, source: sources.Source, indices: list[int]):
    """indices: of the records."""
    self._source, self._indices = source, indices
    self.where = source.where

  def __len__(self) -> int:
    """Returns the number of records."""
    return len(self._indices)

  def __getitem__(self, index: int) -> dict:
    """Reads a record."""
    return self._source[self._indices[index]]

  def name(self, index: int) -> str:
    """Returns a record's name."""
    return self._source.name(self._indices[index])


def measure(config, sample: str) -> dict[str, float]:
  """Times batches of one group, made by one thread as a worker makes them.

  Args:
    config: of the run.
    sample: source of images like the run's.

  Returns:
    seconds_per_image: of one core, from stored bytes to crops and masks.
    bytes_per_image: as stored; of images that are not encoded, their pixels.

  Raises:
    UserError: no record of the source can be read.
  """
  source = sources.open_source(sample, field="--sample")
  how = dict(max_pixels=config.data.max_pixels, layout=layouts.of(config.backbone))
  readable, sizes = _sample(source, how)
  data = mixture.Mixture([readable], [1.0])
  alone = config.copy_and_resolve_references()
  with alone.unlocked():
    alone.workers = 0
  batches = train_batches.open_batches(alone, data, groups=[0], start_step=0)
  with contextlib.closing(batches):
    next(batches)  # first of all, libraries are loaded
    start, made = time.perf_counter(), 0
    while made < 3 or time.perf_counter() - start < SECONDS:
      next(batches)
      made += 1
    rate = batches.rate() * config.group_size
  return {"seconds_per_image": 1 / rate, "bytes_per_image": float(np.mean(sizes))}


def _sample(
  source: sources.Source, how: dict
) -> tuple[sources.Source | Readable, list[int]]:
  """Sizes of SAMPLES random records, and the source, or what of it can be read.

  Corrupt records are skipped and counted. Where all of the sample are, it goes on until
  one can be read.
  """
  found, sizes, bad, reason = [], [], 0, ""
  drawn = np.random.default_rng(0).integers(len(source), size=SAMPLES).tolist()
  for tried, index in enumerate(itertools.chain(drawn, range(len(source)))):
    if tried >= SAMPLES and found:
      break
    try:
      image = source[index]["image"]
      images.decode(image, **how)
    except sources.UNREADABLE as error:
      bad_records.raise_if_lost(error, source.where)
      reason = reason or f"{source.name(index)}: {' '.join(str(error).split())}"
      bad += 1
    else:
      found.append(index)
      sizes.append(len(image) if isinstance(image, bytes) else image.nbytes)
  if not found:
    raise errors.UserError(
      f"{source.where}: none of its {len(source):,} images can be read (such as"
      f" {reason}); give a source of sound images"
    )
  if not bad:
    return source, sizes
  logging.warning(
    "%s: %d of %d sampled images are corrupt and not measured, such as %s",
    *(source.where, bad, bad + len(found), reason),
  )
  return Readable(source, found), sizes


def needs(config, plan: dict, *, hosts: int, measured: dict | None) -> dict[str, float]:
  """Figures of one host, as far as the step's time and a measurement are known.

  Args:
    config: of the run.
    plan: as `plan.make_plan` returns it.
    hosts: machines that the devices are spread over.
    measured: what `measure` returned, or None.

  Returns:
    {name: number}, rates per second, sizes in bytes.
  """
  batch = sum(
    math.prod(shape) * kind.itemsize
    for shape, kind in train_batches.batch_shapes(config).values()
  )
  # Each worker makes one batch while another waits, and one is on its way.
  ahead = 2 * max(config.workers, 1) + 1
  found = {
    "hosts": hosts,
    "workers": config.workers,
    "images_per_step": config.data.batch_size / hosts,
    "batches_bytes": ahead * batch / hosts,
  }
  if "seconds" in plan:
    found["images_per_second"] = found["images_per_step"] / plan["seconds"]
    found["crops_bytes_per_second"] = batch / hosts / plan["seconds"]
  if measured:
    found |= measured
  if measured and "seconds" in plan:
    rate = found["images_per_second"]
    found["cores"] = rate * measured["seconds_per_image"]
    found["read_bytes_per_second"] = rate * measured["bytes_per_image"]
  return found


def rows(needs: dict[str, float]) -> list[tuple[str, str]]:
  """The figures as text: (what, value)."""
  workers = needs["workers"]
  lines = [
    ("input: hosts", f"{needs['hosts']}"),
    ("  images per step and host", f"{needs['images_per_step']:g}"),
    (
      f"  memory for batches, {workers} workers",
      f"{needs['batches_bytes'] / 2**30:.2f} GiB",
    ),
  ]
  if "images_per_second" in needs:
    lines += [
      ("  images/s per host", f"{needs['images_per_second']:,.0f}"),
      (
        "  crops to the devices, per host",
        f"{needs['crops_bytes_per_second'] / 1e6:,.0f} MB/s",
      ),
    ]
  if "seconds_per_image" in needs:
    lines += [
      (
        "  an image on one core, measured",
        f"{needs['seconds_per_image'] * 1e3:.1f} ms",
      ),
      ("  an image as stored", f"{needs['bytes_per_image'] / 1e3:,.1f} kB"),
    ]
  if "cores" in needs:
    short = needs["cores"] > workers
    advice = f"; raise config.workers={workers}" if short else f" of {workers} workers"
    lines += [
      ("  cores needed, like those here", f"{needs['cores']:.1f}{advice}"),
      ("  read per host", f"{needs['read_bytes_per_second'] / 1e6:,.2f} MB/s"),
    ]
  return lines
