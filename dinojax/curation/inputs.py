"""Inputs of an ingest: parts of sources, read in order.

An input is any of the sources that training reads (data/sources.py). It is cut into
parts, which tasks read in order, and read again when the output is written: images
never travel between processes. A part of tar is one file, of Parquet one row group, of
other kinds RECORDS records.
"""

import collections
import functools
import hashlib
import io
import os
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from dinojax import errors
from dinojax.curation import failures, jobs
from dinojax.data import (
  bad_records,
  class_labels,
  files,
  folder,
  parquet,
  sources,
  tar_shards,
  walk,
)

RECORDS = 2048  # of a part, where records can be read in any order
MOST = 5  # extensions that are logged
IN_ORDER = ("tar", "parquet")  # kinds that are read file by file


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
  """Returns the parts of all inputs in order, sets to exclude first.

  Raises:
    UserError: an input is no source, matches nothing, or cannot be read.
  """
  parts = []
  inputs = [("--exclude", spec) for spec in excluded]
  inputs += [("--images", spec) for spec in images]
  for number, (field, spec) in enumerate(inputs):
    for place, start, stop, fingerprint in _cut(field, spec, settings):
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


def _cut(
  field: str, spec: str, settings: jobs.Settings
) -> Iterator[tuple[str, int, int, str]]:
  """Yields spec, start, stop and fingerprint of an input's parts."""
  kind, _, pattern = spec.partition(":")
  if kind not in IN_ORDER or not pattern:
    source = _open(spec, field)
    for start in range(0, len(source), RECORDS):
      stop = min(start + RECORDS, len(source))
      yield spec, start, stop, source.fingerprint
    return
  where = errors.printable(f'{field}="{spec}"')
  found = files.match(pattern, where, kind=kind)
  # One will do: a damaged file among many is reported, and the others are read.
  if kind == "tar" and not any(tar_shards.is_tar(file.path) for file in found):
    raise errors.UserError(
      f"{where} matches no tar file, but such as {errors.printable(found[0].path)}"
    )
  named = {}
  for file in found:
    identity = f"{file.size} {file.modified}"
    if kind == "tar":
      yield f"tar:{file.path}", 0, 1, identity
      continue
    groups, names = parquet.row_groups(file.path, where, *_columns(settings))
    named.setdefault(names, errors.printable(file.path))
    if len(named) > 1:
      raise errors.UserError(
        f"{where}: {' and '.join(named.values())} name their classes differently; give"
        f" {field} once for each kind"
      )
    for group in range(groups):
      yield f"parquet:{file.path}", group, group + 1, identity


def _columns(settings: jobs.Settings) -> tuple[str, str]:
  return settings.image_column, settings.label_column


def fingerprint(parts: list[jobs.Part]) -> str:
  """Returns 16 hex digits of all inputs, their contents, and how they are cut."""
  places = (part.spec.partition(":") for part in parts)
  paths = {path: None for kind, _, path in places if kind in IN_ORDER}
  contents = ""  # of others, a part's own fingerprint has them
  if paths:
    contents = files.fingerprint_matched(files.described(list(paths), "--images"))
  identity = "\n".join([*map(str, parts), contents])
  return hashlib.sha256(os.fsencode(identity)).hexdigest()[:16]


def skipped_files(specs: list[str]) -> list[str]:
  """Returns a line for each folder with files skipped because of their extension."""
  lines = []
  for spec in specs:
    kind, _, root = spec.partition(":")
    root = os.path.expanduser(root)
    if kind != "folder" or not os.path.isdir(root):
      continue
    endings = collections.Counter()
    for _, entries in walk.folders(root, spec, []):
      names = (entry.name.lower() for entry in entries)
      endings.update(os.path.splitext(name)[1] or "without" for name in names)
    pictures = any(ending in endings for ending in folder.ENDINGS)
    for ending in folder.ENDINGS if pictures else folder.ARRAYS:
      del endings[ending]
    if endings:
      most = [f"{count:,} {ending}" for ending, count in endings.most_common(MOST)]
      more = ", ..." if len(endings) > MOST else ""
      lines.append(
        errors.printable(
          f"{spec}: files skipped because of their extension: {', '.join(most)}{more}"
        )
      )
  return lines


def class_names(
  parts: list[jobs.Part], settings: jobs.Settings
) -> dict[int, tuple[str, ...]]:
  """Returns the names of classes, by label, of each input that has any."""
  found = {}
  for part in {part.source: part for part in parts if not part.excluded}.values():
    kind, _, path = part.spec.partition(":")
    if kind == "parquet":
      found[part.source] = parquet.row_groups(path, part.spec, *_columns(settings))[1]
    elif kind != "tar":
      found[part.source] = _open_unchanged(part).class_names
  return found


@functools.lru_cache(maxsize=4)
def _open(spec: str, field: str) -> sources.Source:
  """A source, kept open from one part to the next."""
  return sources.open_source(spec, field=field)


def _open_unchanged(part: jobs.Part) -> sources.Source:
  try:
    source = _open(part.spec, "--exclude" if part.excluded else "--images")
  except errors.UserError as error:
    raise errors.TemporaryError(
      f"{error} (it was there when this ingest began); put it back, and run the same"
      " command again to resume"
    ) from error
  if source.fingerprint != part.fingerprint:
    raise _changed(part)
  return source


def read(
  part: jobs.Part, job: jobs.Job, rows: Collection[int] | None = None
) -> Iterator[Record]:
  """Yields the images of a part in order, those of certain rows if any are given.

  Ends the command if no image comes for `job.hang_minutes`.

  Raises:
    UserError: the input is not what it was when the parts were made.
    TemporaryError: it is gone, or out of reach.
  """
  wanted = None if rows is None else frozenset(rows)
  where = errors.printable(part.spec)
  found = _read(part, job.settings, wanted)
  return failures.watched(found, minutes=job.hang_minutes, where=where)


def _read(
  part: jobs.Part, settings: jobs.Settings, wanted: frozenset[int] | None
) -> Iterator[Record]:
  kind, _, path = part.spec.partition(":")
  try:
    if kind not in IN_ORDER:
      yield from _read_source(part, wanted)
      return
    status = os.stat(path)
    if f"{status.st_size} {status.st_mtime_ns}" != part.fingerprint:
      raise _changed(part)
    if kind == "tar":
      found, separator = tar_shards.read(path), ":"
    else:
      found = parquet.read(path, part.start, *_columns(settings))
      separator = f"#{part.start}."
    for row, (name, image, label, trouble) in enumerate(found):
      if wanted is None or row in wanted:
        name = f"{separator}{name}" if name else ""
        yield Record(row, f"{errors.printable(path)}{name}", image, label, trouble)
  except OSError as error:
    lasting = isinstance(error, PermissionError)
    raise (errors.UserError if lasting else errors.TemporaryError)(
      f"{errors.printable(part.spec)} cannot be read any more"
      f" ({error.strerror or error}); put it back, and run the same command again to"
      " resume"
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
      bad_records.raise_if_lost(error, source.where)
      yield Record(row, name, None, class_labels.NO_LABEL, " ".join(str(error).split()))
      continue
    image = found["image"]
    if isinstance(image, np.ndarray):
      image = _encode(image)
    yield Record(row, name, image, found["label"], "")


def _encode(pixels: np.ndarray) -> bytes:
  """Returns pixels that a source has in memory, as PNG."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def _changed(part: jobs.Part) -> errors.UserError:
  return errors.UserError(
    f"{errors.printable(part.spec)} has changed since this ingest began; begin another"
    " one, with another --out"
  )
