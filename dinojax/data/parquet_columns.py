"""Columns of Parquet files: which one holds images, which labels, and their classes.

Images are bytes, or Hugging Face's {bytes, path}. pyarrow is imported where it is used:
it is an extra.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from dinojax import errors
from dinojax.data import class_labels

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
LABELS = ("label", "labels", "cls", "fine_label")


class Columns(NamedTuple):
  """What is read of a file. label: "" for none."""

  image: str
  label: str
  leaf: str  # the image's bytes in the file's own schema

  @property
  def names(self) -> list[str]:
    """Those that there are."""
    return [name for name in (self.image, self.label) if name]


@contextlib.contextmanager
def opened(path: str, where: str, *wanted: str) -> Iterator[tuple[Any, Columns]]:
  """Opens a file as pyarrow's ParquetFile, with its columns.

  Args:
    path: of the file.
    where: the beginning of an error's message.
    wanted: names of the columns of images and of labels, or "" for usual ones.

  Raises:
    errors.UserError: it is no Parquet file, or its columns are not clear.
  """
  try:
    import pyarrow
    from pyarrow import parquet
  except ModuleNotFoundError as error:
    raise errors.UserError(
      f"{where} needs pyarrow: pip install 'dinojax[parquet]'"
    ) from error
  refusal = f"{where} matches {errors.printable(path)}, which is no Parquet file"
  try:
    file = parquet.ParquetFile(pyarrow.OSFile(os.fsencode(path)))
    columns = _find(file.schema_arrow, path, where, *wanted)
  except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
    raise errors.UserError(f"{refusal} ({first_line(error)})") from error
  with file:
    try:
      yield file, columns
    except UnicodeDecodeError as error:  # pyarrow decodes names when they are asked for
      raise errors.UserError(f"{refusal} ({first_line(error)})") from error


def class_names(file: Any, columns: Columns) -> tuple[str, ...]:
  """Returns the names that Hugging Face gives the classes, by label, or ()."""
  metadata = file.schema_arrow.metadata or {}
  try:
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    feature = features[columns.label]
    names = feature["names"] if feature["_type"] == "ClassLabel" else ()
    return tuple(errors.printable(name) for name in names)
  except (KeyError, TypeError, ValueError, RecursionError):  # somebody else's
    return ()


def top_label(file: Any, columns: Columns) -> int:
  """Returns the largest label of a file, or class_labels.NO_LABEL."""
  import pyarrow.compute

  top = class_labels.NO_LABEL
  for group in range(file.num_row_groups if columns.label else 0):
    try:
      for batch in file.iter_batches(row_groups=[group], columns=[columns.label]):
        top = max(top, _label(pyarrow.compute.max(batch.column(0))))
    except (OSError, pyarrow.ArrowException) as error:
      if not is_damage(error):
        raise
      # Its rows are corrupt records.
  return top


def image_bytes(file: Any, group: int, columns: Columns) -> int:
  """Returns the size of the images of a row group, decompressed."""
  found = file.metadata.row_group(group)
  chunks = (found.column(i) for i in range(found.num_columns))
  return sum(
    chunk.total_uncompressed_size
    for chunk in chunks
    if chunk.path_in_schema == columns.leaf
  )


def cell(table: Any, row: int, columns: Columns) -> tuple[bytes | None, int]:
  """Returns encoded image, if there is one, and label of a row of a table or batch."""
  image = table.column(columns.image)[row]
  if columns.leaf != columns.image:  # beside what else is there, such as a path
    image = image["bytes"] if image.is_valid else None
  image = (image.as_py() or None) if image else None
  if not columns.label:
    return image, class_labels.NO_LABEL
  return image, _label(table.column(columns.label)[row])


def _label(scalar) -> int:
  try:
    return class_labels.parse(scalar.as_py())
  except UnicodeDecodeError:
    return class_labels.NOT_A_CLASS  # text that is not UTF-8


def is_damage(error: Exception) -> bool:
  """Returns whether Arrow complains of bytes, and not of the file system."""
  return not isinstance(error, OSError) or error.errno is None


def first_line(error: Exception) -> str:
  """Returns the first line of what Arrow says."""
  return errors.printable(str(error).splitlines()[0]) if str(error) else repr(error)


def _find(
  schema: Any, path: str, where: str, image_column: str = "", label_column: str = ""
) -> Columns:
  """Chooses the columns: of images the one that plainly is, of labels a usual one."""
  import pyarrow

  path = errors.printable(path)

  def leaf(name):
    """Path of the bytes in a column of images; None if it is none."""
    kind, ending = schema.field(name).type, ""
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
      kind, ending = kind.field("bytes").type, ".bytes"
    binary = pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)
    return name + ending if binary else None

  found = [name for name in schema.names if leaf(name)]
  usual = [name for name in IMAGES if name in found]
  chosen = image_column or (usual or (found if len(found) == 1 else [""]))[0]
  if chosen not in found:
    raise errors.UserError(
      f"{where}: {path} has no column of encoded images"
      f"{f' {chosen!r}' if chosen else ' that is plainly one'}; columns of bytes are"
      f" {json.dumps(found)}; call it `image`, or name it by --image_column of"
      " dinojax.ingest"
    )
  if label_column and label_column not in schema.names:
    raise errors.UserError(
      f"{where}: {path} has no --label_column={label_column}, only"
      f" {json.dumps(schema.names)}"
    )
  integers = [
    name
    for name in LABELS
    if name in schema.names and pyarrow.types.is_integer(schema.field(name).type)
  ]
  return Columns(chosen, label_column or (integers or [""])[0], leaf(chosen))
