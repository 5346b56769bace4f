"""What an ingest is: its settings, the parts of its inputs, and its folder of work.

An image's id is its part's number and its row in that part, in one uint64: the order of
ids is the order of the inputs. Every step leaves files in the folder of work, one per
part or one for all, each whole or absent; a step that finds its file does nothing.
"""

import dataclasses
import io
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from dinojax import durable

# In this order; each drops images that those before it have kept.
STEPS = ("exact", "near", "embedding", "sample")
# Why an image is not in the output, by number: 0 is none.
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
# An image that is left out: what is kept in its place, or its own id.
DROP = np.dtype([("id", np.uint64), ("kept", np.uint64), ("reason", np.uint8)])


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
  """A piece of an input that one task reads in order.

  spec is one file for tar and Parquet, otherwise the whole source, of which the part is
  the records from start to stop; of Parquet, it is the row groups from start to stop.
  """

  number: int
  source: int  # of the inputs as they are given
  spec: str
  start: int
  stop: int
  excluded: bool  # an evaluation set, which only drops what is close to it
  fingerprint: str

  @property
  def first_id(self) -> int:
    """The id of its first image."""
    return self.number << 32


@dataclasses.dataclass(frozen=True)
class Job:
  """What every task is given. out: the folder to be made; work: the folder of work."""

  settings: Settings
  out: pathlib.Path
  work: pathlib.Path

  def path(self, step: str, name: int | str, ending: str = "npy") -> pathlib.Path:
    """Where a step keeps the file of a part, or of that name."""
    name = f"{name:06d}" if isinstance(name, int) else name
    return self.work / step / f"{name}.{ending}"

  def save(self, path: pathlib.Path, content: Any) -> None:
    """Writes an array as .npy, or anything else as JSON; whole or not at all."""
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
    """What was seen of a part's images, `examine.ROW`, mapped from its file."""
    return np.load(self.path("scan", number), mmap_mode="r")

  def names(self, number: int) -> list[str]:
    """The names of a part's images."""
    return json.loads(self.path("scan", number, "json").read_text())

  def drops(self, before: str | None = None) -> list[np.ndarray]:
    """What the steps have dropped, those before the one named, or all."""
    steps = STEPS[: STEPS.index(before)] if before else STEPS
    paths = [self.path("drop", step) for step in steps]
    return [np.load(path, mmap_mode="r") for path in paths if path.exists()]

  def reasons(self, number: int, before: str | None = None) -> np.ndarray:
    """Why each image of a part is out so far, a number of REASONS; uint8 [rows]."""
    reasons = np.array(self.rows(number)["reason"])
    for drops in self.drops(before):
      ids = drops["id"]
      start, stop = np.searchsorted(
        ids, np.array([number << 32, number + 1 << 32], np.uint64)
      )
      reasons[rows_of(ids[start:stop])] = drops["reason"][start:stop]
    return reasons

  def survivors(self, number: int, before: str | None = None) -> np.ndarray:
    """The ids of a part's images that are in so far, rising; uint64."""
    rows = np.flatnonzero(self.reasons(number, before) == 0)
    return rows.astype(np.uint64) + np.uint64(number << 32)


def rows_of(ids: np.ndarray) -> np.ndarray:
  """The row of each image in its part; int64."""
  return (ids & np.uint64(0xFFFFFFFF)).astype(np.int64)


def parts_of(ids: np.ndarray) -> np.ndarray:
  """The number of each image's part; int64."""
  return (ids >> np.uint64(32)).astype(np.int64)


def gather(ids: np.ndarray, read) -> np.ndarray:
  """Values of images in any parts, in the order of `ids`.

  Args:
    ids: uint64 [n], of any order.
    read: a part's number -> array whose row r belongs to its image r.
  """
  order = np.argsort(ids)
  parts = parts_of(ids[order])
  bounds = np.flatnonzero(np.diff(parts, prepend=-1, append=-1))
  values = None
  for start, stop in itertools.pairwise(bounds):
    places = order[start:stop]
    found = read(int(parts[start]))[rows_of(ids[places])]
    if values is None:
      values = np.empty((len(ids), *found.shape[1:]), found.dtype)
    values[places] = found
  return values


def mix(values: np.ndarray, seed: int = 0) -> np.ndarray:
  """Scatters uint64 values, one to one (the finaliser of SplitMix64)."""
  with np.errstate(over="ignore"):
    x = values + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
