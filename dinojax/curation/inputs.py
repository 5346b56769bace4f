"""Where ingest reads: tar and Parquet files, and every source that training reads.

  tar:GLOB       tar files of img2dataset or webdataset
  parquet:GLOB   Parquet files with a column of encoded images
  folder:PATH, arrayrecord:GLOB, tfds:NAME:SPLIT, embedded:digits:SPLIT   sources.py

An input is cut into parts, which tasks read in order, and read again when the output is
written: images never travel between processes.
"""

import collections
import functools
import glob
import hashlib
import io
import os
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from dinojax import errors
from dinojax.curation import jobs
from dinojax.data import parquet, sources, tar_shards

RECORDS = 2048  # of a part, where records can be had in any order
MOST = 5  # extensions that are logged
KINDS = "folder:PATH, tar:GLOB, parquet:GLOB, arrayrecord:GLOB or tfds:NAME:SPLIT"


class Record(NamedTuple):
  """An image as it was found. image: encoded, or None if `trouble` says why not."""

  row: int
  name: str
  image: bytes | None
  label: int
  trouble: str


def plan(
  images: list[str], excluded: list[str], settings: jobs.Settings
) -> list[jobs.Part]:
  """The parts of all inputs in order, sets to exclude first.

  Raises:
    UserError: an input is no source, matches nothing, or cannot be read.
  """
  parts = []
  inputs = [("--exclude", spec) for spec in excluded]
  inputs += [("--images", spec) for spec in images]
  for number, (field, spec) in enumerate(inputs):
    for place, start, stop, fingerprint in _pieces(field, spec, settings):
      parts.append(
        jobs.Part(
          number=len(parts),
          source=number,
          spec=place,
          start=start,
          stop=stop,
          excluded=field == "--exclude",
          fingerprint=fingerprint,
        )
      )
  return parts


def _pieces(
  field: str, spec: str, settings: jobs.Settings
) -> Iterator[tuple[str, int, int, str]]:
  """Yields spec, start, stop and fingerprint of an input's parts."""
  kind, _, pattern = spec.partition(":")
  where = f'{field}="{spec}"'
  if kind not in ("tar", "parquet"):
    try:
      source = sources.open_source(spec, field=field)
    except errors.UserError as error:
      if kind in ("folder", "arrayrecord", "tfds", "embedded"):
        raise
      raise errors.UserError(f"{where} must be {KINDS}") from error
    for start in range(0, len(source), RECORDS):
      stop = min(start + RECORDS, len(source))
      yield spec, start, stop, source.fingerprint
    return
  paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
  if not paths:
    raise errors.UserError(f"{where} matches no file; give a pattern of {kind} files")
  if folders := [path for path in paths if os.path.isdir(path)]:
    raise errors.UserError(
      f"{where}: {folders[0]} is a folder; give {kind}:{folders[0]}/*.{kind}"
    )
  # One is enough: a damaged file among many is reported, and the others are read.
  if kind == "tar" and not any(map(tar_shards.is_one, paths)):
    raise errors.UserError(f"{where} matches no tar file, but such as {paths[0]}")
  for path in paths:
    identity = _identity(path)
    if kind == "tar":
      yield f"tar:{path}", 0, 1, identity
      continue
    columns = settings.image_column, settings.label_column
    for group in range(parquet.row_groups(path, where, *columns)):
      yield f"parquet:{path}", group, group + 1, identity


def fingerprint(parts: list[jobs.Part]) -> str:
  """16 hex digits of all inputs and how they are cut."""
  identity = "\n".join(map(str, parts))
  return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _identity(path: str) -> str:
  status = os.stat(path)
  return f"{status.st_size} {status.st_mtime_ns}"


def skipped_files(specs: list[str]) -> list[str]:
  """Counts, for each folder, the files skipped because of their extension; lines."""
  lines = []
  for spec in specs:
    kind, _, root = spec.partition(":")
    if kind != "folder":
      continue
    endings = collections.Counter()
    for _, subfolders, files in os.walk(os.path.expanduser(root), followlinks=True):
      subfolders[:] = [name for name in subfolders if not name.startswith(".")]
      lower = (name.lower() for name in files if not name.startswith("."))
      others = (name for name in lower if not name.endswith(sources.ENDINGS))
      endings.update(os.path.splitext(name)[1] or "without" for name in others)
    if endings:
      most = [f"{count:,} {ending}" for ending, count in endings.most_common(MOST)]
      more = ", ..." if len(endings) > MOST else ""
      lines.append(
        f"{spec}: files skipped because of their extension: {', '.join(most)}{more}"
      )
  return lines


def class_names(parts: list[jobs.Part]) -> dict[int, tuple[str, ...]]:
  """By label, of each input that names its classes."""
  specs = {part.source: part for part in parts if not part.excluded}
  return {
    number: _open_unchanged(part).class_names
    for number, part in specs.items()
    if not part.spec.startswith(("tar:", "parquet:"))
  }


@functools.lru_cache(maxsize=4)
def _open(spec: str) -> sources.Source:
  """A source, kept open from one part to the next."""
  return sources.open_source(spec, field="--images")


def _open_unchanged(part: jobs.Part) -> sources.Source:
  source = _open(part.spec)
  if source.fingerprint != part.fingerprint:
    raise _changed(part)
  return source


def read(
  part: jobs.Part, settings: jobs.Settings, rows: Collection[int] | None = None
) -> Iterator[Record]:
  """Yields the images of a part in order, those of certain rows if any are given.

  Raises:
    UserError: the input is gone, or not what it was when the parts were made.
  """
  wanted = None if rows is None else frozenset(rows)
  kind, _, path = part.spec.partition(":")
  try:
    if kind not in ("tar", "parquet"):
      yield from _read_source(part, wanted)
      return
    if _identity(path) != part.fingerprint:
      raise _changed(part)
    columns = settings.image_column, settings.label_column
    if kind == "tar":
      found = tar_shards.read(path)
    else:
      found = parquet.read(path, part.start, *columns)
    separator = ":" if kind == "tar" else f"#{part.start}."
    for row, (name, image, label, trouble) in enumerate(found):
      if wanted is None or row in wanted:
        name = f"{path}{separator}{name}" if name else path
        yield Record(row, name, image, label, trouble)
  except OSError as error:
    raise errors.UserError(
      f"{part.spec} cannot be read any more ({error.strerror or error}); put it back,"
      " and the same command goes on"
    ) from error


def _read_source(part: jobs.Part, wanted: frozenset[int] | None) -> Iterator[Record]:
  source = _open_unchanged(part)
  for row in range(part.stop - part.start):
    if wanted is not None and row not in wanted:
      continue
    index = part.start + row
    name = source.name(index)
    try:
      found = source[index]
    except sources.UNREADABLE as error:
      yield Record(row, name, None, -1, " ".join(str(error).split()))
      continue
    image = found["image"]
    if isinstance(image, np.ndarray):
      image = _encode(image)
    yield Record(row, name, image, found["label"], "")


def _encode(pixels: np.ndarray) -> bytes:
  """Pixels that a source has in memory, as PNG."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def _changed(part: jobs.Part) -> errors.UserError:
  return errors.UserError(
    f"{part.spec} has changed since this ingest began; begin another one, with another"
    " --out"
  )
