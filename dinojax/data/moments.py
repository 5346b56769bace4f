"""Mean and deviation of the channels of a source's images, over all their pixels."""

import concurrent.futures
from typing import NamedTuple

import numpy as np
import tqdm

from dinojax import channels, errors
from dinojax.data import bad_records, images, layouts, sources

THREADS = 8
TYPES = tuple(channels.LEAST)  # of images; other numbers become floating point


class Moments(NamedTuple):
  """Of some pixels, by channel: how many, mean, mean square distance, extremes."""

  count: int
  mean: np.ndarray
  variance: np.ndarray
  least: np.ndarray
  most: np.ndarray

  def joined(self, other: "Moments") -> "Moments":
    """Of these and other pixels (Chan's formula, which loses no digits)."""
    count = self.count + other.count
    part, apart = other.count / count, other.mean - self.mean
    within = (1 - part) * self.variance + part * other.variance
    return Moments(
      count,
      self.mean + part * apart,
      within + part * (1 - part) * apart**2,
      np.minimum(self.least, other.least),
      np.maximum(self.most, other.most),
    )


def of_image(pixels: np.ndarray) -> Moments:
  """`Moments` of one image [H, W, C]."""
  flat = pixels.reshape(-1, pixels.shape[-1]).astype(np.float64)
  parts = (flat.mean(0), flat.var(0), flat.min(0), flat.max(0))
  return Moments(len(flat), *parts)


def measure(
  source: sources.Source, *, count: int, max_pixels: int = images.MAX_PIXELS
) -> tuple[layouts.Layout, Moments, int]:
  """Layout and `Moments` of at most `count` images, and how many could be read.

  Raises:
    UserError: none can be read, or they have more channels than a run may have.
  """
  records = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
  layout = _layout(source, records.tolist(), max_pixels)
  how = dict(max_pixels=max_pixels, layout=layout)

  def read(index):
    try:
      return of_image(images.decode(source[index]["image"], **how))
    except sources.UNREADABLE as error:
      bad_records.raise_if_lost(error, source.where)
      return f"{source.name(index)}: {' '.join(str(error).split())}"

  log, found, readable = bad_records.Log("corrupt image skipped"), None, 0
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    results = pool.map(read, records.tolist())
    for one in tqdm.tqdm(results, total=len(records), leave=False, disable=None):
      if isinstance(one, str):
        log.add(one)
        continue
      found, readable = found.joined(one) if found else one, readable + 1
  return layout, found, readable


def _layout(source, records, max_pixels):
  """That of the first image that can be read."""
  reason = ""
  for index in records:
    try:
      pixels = images.decode(source[index]["image"], max_pixels=max_pixels, layout=None)
    except sources.UNREADABLE as error:
      bad_records.raise_if_lost(error, source.where)
      reason = reason or f"{source.name(index)}: {' '.join(str(error).split())}"
      continue
    if (count := pixels.shape[-1]) > channels.MOST:
      raise errors.UserError(
        f"{source.where}: {source.name(index)} has {count} channels; a run takes"
        f" at most {channels.MOST}"
      )
    name = pixels.dtype.name
    return layouts.Layout(count, name if name in TYPES else "float32")
  raise errors.UserError(
    f"{source.where}: none of {len(records):,} images can be read, such as {reason}"
  )
