"""An ingest: its settings, the parts of its inputs, and its work folder.

An image's id is the number of its part and its row in that part, in one uint64: ids
have the order of the inputs. Every step writes files to the work folder, one per part
or one for all, each atomically. A step that finds its file does nothing, so a restarted
ingest resumes.
"""

import dataclasses
import io
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dinojax import durable

# In this order; each drops some of the images that the steps before it have kept.
STEPS = ("exact", "near", "embedding", "sample")
# Why an image is dropped, by number; 0: it is kept.
REASONS = (
  "",
  "unreadable",
  "animated",
  "too many pixels",
  "too small",
  "too elongated",
  "exact duplicate",
  "near duplicate",
  "similar embedding",
  "in an excluded set",
  "not sampled",
)
REASON = {name: number for number, name in enumerate(REASONS)}
# A dropped image, and the image that it matches: a kept one, one of an excluded set, or
# itself if there is none.
DROP = np.dtype([("id", np.uint64), ("match", np.uint64), ("reason", np.uint8)])


@dataclasses.dataclass(frozen=True)
class Settings:
  """Every choice that changes the output; the flags of the same names explain them."""

  min_side: int
  max_aspect: float
  max_pixels: int
  animated: bool
  shorter_side: int
  quality: int
  exact: str
  near_bits: int
  near_difference: float
  near_cosine: float
  clusters: int
  sample: int
  records_per_shard: int
  seed: int
  image_column: str
  label_column: str


@dataclasses.dataclass(frozen=True)
class Part:
  """A slice of an input that one task reads in order.

  spec is one file for tar and Parquet, otherwise the whole source, of which the part is
  the records from start to stop; of Parquet, it is the row groups from start to stop.
  """

  number: int
  source: int  # which input, in the order of the flags
  spec: str
  start: int
  stop: int
  excluded: bool  # of an evaluation set: its images are not kept, only matched
  fingerprint: str

  @property
  def first_id(self) -> int:
    """The id of its first image."""
    return self.number << 32


@dataclasses.dataclass(frozen=True)
class Job:
  """What every task knows.

  out: the folder to be made. work: the work folder. hang_minutes: that one image may
  take to be read; 0: no limit.
  """

  settings: Settings
  out: pathlib.Path
  work: pathlib.Path
  hang_minutes: float

  def path(self, step: str, name: int | str, ending: str = "npy") -> pathlib.Path:
    """Where a step keeps the file of a part, or of that name."""
    name = f"{name:06d}" if isinstance(name, int) else name
    return self.work / step / f"{name}.{ending}"

  def save(self, path: pathlib.Path, content: Any) -> None:
    """Writes an array as .npy, or anything else as JSON, atomically."""
    with durable.os_errors_as_user_errors(self.out):
      path.parent.mkdir(parents=True, exist_ok=True)
    with durable.atomic_write(path, out=self.out) as file:
      if isinstance(content, np.ndarray):
        buffer = io.BytesIO()  # NumPy itself would not say why a disk refuses
        np.save(buffer, content)
        file.write(buffer.getbuffer())
      else:
        file.write((json.dumps(content, indent=1) + "\n").encode())

  def rows(self, number: int) -> np.ndarray:
    """What is known of a part's images, `examine.ROW`, mapped from its file."""
    return np.load(self.path("scan", number), mmap_mode="r")

  def names(self, number: int) -> list[str]:
    """The names of a part's images."""
    return json.loads(self.path("names", number, "json").read_text())

  def details(self, number: int) -> dict[int, str]:
    """By row, what exactly is wrong with images of a part that cannot be used."""
    found = json.loads(self.path("details", number, "json").read_text())
    return {int(row): detail for row, detail in found.items()}

  def drops(self, before: str | None = None) -> list[np.ndarray]:
    """The images, DROP, that each step before the one named has dropped; or all."""
    steps = STEPS[: STEPS.index(before)] if before else STEPS
    paths = [self.path("drop", step) for step in steps]
    return [np.load(path, mmap_mode="r") for path in paths if path.exists()]

  def reasons(self, number: int, before: str | None = None) -> np.ndarray:
    """Why each image of a part is dropped so far, by REASONS; uint8 [rows]."""
    reasons = np.array(self.rows(number)["reason"])
    for drops in self.drops(before):
      ids = drops["id"]
      start, stop = np.searchsorted(
        ids, np.array([number << 32, number + 1 << 32], np.uint64)
      )
      reasons[rows_of(ids[start:stop])] = drops["reason"][start:stop]
    return reasons

  def kept_ids(self, number: int, before: str | None = None) -> np.ndarray:
    """The ids of a part's images that are kept so far, rising; uint64."""
    rows = np.flatnonzero(self.reasons(number, before) == 0)
    return rows.astype(np.uint64) + np.uint64(number << 32)


def rows_of(ids: np.ndarray) -> np.ndarray:
  """The row of each image in its part; int64."""
  return (ids & np.uint64(0xFFFFFFFF)).astype(np.int64)


def parts_of(ids: np.ndarray) -> np.ndarray:
  """The number of each image's part; int64."""
  return (ids >> np.uint64(32)).astype(np.int64)


def gather(ids: np.ndarray, read_part: Callable[[int], np.ndarray]) -> np.ndarray:
  """Values of images in any parts, in the order of `ids`.

  Args:
    ids: uint64 [n], of any order.
    read_part: a part's number -> array whose row r belongs to its image r.
  """
  order = np.argsort(ids)
  parts = parts_of(ids[order])
  bounds = np.flatnonzero(np.diff(parts, prepend=-1, append=-1))
  values = None
  for start, stop in itertools.pairwise(bounds):
    places = order[start:stop]
    found = read_part(int(parts[start]))[rows_of(ids[places])]
    if values is None:
      values = np.empty((len(ids), *found.shape[1:]), found.dtype)
    values[places] = found
  return values


def splitmix64(values: np.ndarray, seed: int = 0) -> np.ndarray:
  """Pseudo-random uint64 of uint64 values, one to one (SplitMix64's finaliser)."""
  with np.errstate(over="ignore"):
    x = values + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
