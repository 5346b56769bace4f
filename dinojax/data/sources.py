"""Sources of images: one string names one, KINDS lists what there is.

A source gives encoded images and labels by index. It is a small picklable object that
opens its files lazily: every input worker process holds a copy.
"""

import fnmatch
import glob
import logging
import os
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from dinojax import errors
from dinojax.data import (
  csv_table,
  depth_scenes,
  digits,
  files,
  masked_folder,
  parquet,
  published,
  scenes,
  shards,
  tar_shards,
)

# What reading a damaged record raises: file systems, array_record, decoders.
UNREADABLE = (OSError, RuntimeError, ValueError)


class Source(Protocol):
  """What every source offers."""

  where: str  # config path and value, the beginning of its error messages
  class_names: tuple[str, ...]  # by label; () without labels, or if nothing names them
  labels: np.ndarray | None  # of all records, if known without reading them
  fingerprint: str  # identifies the content, wherever it lies; see data/files.py
  notes: tuple[str, ...]  # what is odd about it; each continues a line after `where`

  def __len__(self) -> int:
    """Returns the number of records."""

  def __getitem__(self, index: int) -> dict:
    """Returns {"image": encoded bytes or uint8 [H, W, 3], "label": int, -1 = none}.

    Raises one of UNREADABLE if the record is corrupt.
    """

  def name(self, index: int) -> str:
    """Returns file, or shard and position, printable on one line."""


@runtime_checkable
class DepthSource(Source, Protocol):
  """A source whose records also have a "depth_map", see data/depth_maps.py."""

  depth_unit: str  # always "m"


@runtime_checkable
class DenseSource(Source, Protocol):
  """A source whose records also have a "label_map", see data/label_maps.py."""

  map_classes: tuple[str, ...]  # by value of the maps; () if nothing names them


class Kind(NamedTuple):
  """A kind of sources. open: called with what stands behind "KIND:", and `where`."""

  usage: str
  open: Callable[[str, str], Source]


EMBEDDED = {
  "digits": digits.DigitsSource,
  "scenes": scenes.ScenesSource,
  "depth": depth_scenes.DepthScenesSource,
}


def _open_embedded(spec: str, where: str) -> Source:
  name, _, split = spec.partition(":")
  if name not in EMBEDDED or split not in ("train", "test"):
    known = " or ".join(f"embedded:{name}:train" for name in EMBEDDED)
    raise errors.UserError(f"{where} must be {known}, or the same with :test")
  return EMBEDDED[name](split, where)


KINDS = {
  "folder": Kind("folder:PATH", masked_folder.open_folder),
  "tar": Kind("tar:GLOB", tar_shards.TarSource),
  "parquet": Kind("parquet:GLOB", parquet.ParquetSource),
  "arrayrecord": Kind("arrayrecord:GLOB", shards.ArrayRecordSource),
  "tfds": Kind("tfds:NAME:SPLIT", shards.TfdsSource),
  "csv": Kind("csv:FILE", csv_table.CsvSource),
  "ade20k": Kind("ade20k:FOLDER:SPLIT", published.open_ade20k),
  "voc": Kind("voc:FOLDER:SPLIT", published.open_voc),
  "cityscapes": Kind("cityscapes:FOLDER:SPLIT", published.open_cityscapes),
  "embedded": Kind(
    ", ".join(f"embedded:{name}:SPLIT" for name in EMBEDDED), _open_embedded
  ),
}
USAGE = ", ".join(kind.usage for kind in KINDS.values())


def open_source(spec: str, *, field: str) -> Source:
  """Opens the source that one string names, and logs what is odd about it.

  Args:
    spec: "KIND:REST", as KINDS lists them.
    field: config path of `spec`, such as "config.data.source".

  Raises:
    errors.UserError: nothing of that kind is there, or it holds no images.
  """
  where = errors.printable(f'{field}="{spec}"')
  kind, _, rest = spec.partition(":")
  if kind not in KINDS or not rest:
    raise errors.UserError(f"{where} must be one of {USAGE}{_guess(spec)}")
  source = KINDS[kind].open(rest, where)
  for note in source.notes:
    logging.warning("%s %s", where, note)
  return source


def _guess(spec: str) -> str:
  """Returns what somebody may have meant who left out the kind; often nothing."""
  path = os.path.expanduser(spec)
  names = [os.path.basename(found) for found in glob.glob(path)]
  for kind, ending in files.ENDING.items():
    if fnmatch.filter(names, ending):
      return errors.printable(f"; did you mean {kind}:{spec}?")
  return (
    errors.printable(f"; did you mean folder:{spec}?") if os.path.isdir(path) else ""
  )
