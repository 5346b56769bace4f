"""Images in a column of Parquet files, as bytes or as Hugging Face's {bytes, path}."""

import json
from collections.abc import Iterator
from typing import Any

from dinojax import errors

BATCH = 128  # rows in memory at a time
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
LABEL_COLUMNS = ("label", "labels", "cls", "fine_label")


def row_groups(path: str, where: str, image_column: str, label_column: str) -> int:
  """The number of a file's row groups.

  Raises:
    UserError: it is no Parquet file, or has no such columns; it begins with `where`.
  """
  import pyarrow
  from pyarrow import parquet

  try:
    with parquet.ParquetFile(path) as file:
      _columns(file.schema_arrow, path, where, image_column, label_column)
      return file.metadata.num_row_groups
  except (OSError, pyarrow.ArrowException) as error:
    raise errors.UserError(
      f"{where} matches {path}, which is no Parquet file ({_line(error)})"
    ) from error


def read(
  path: str, group: int, image_column: str, label_column: str
) -> Iterator[tuple[str, bytes | None, int, str]]:
  """Yields (row in the group, encoded image, label or -1, "") of a row group, in order.

  A row without bytes has None and what is wrong; so has the last one, of name "", if
  the group is damaged.
  """
  import pyarrow
  from pyarrow import parquet

  row = 0
  try:
    with parquet.ParquetFile(path) as file:
      names = _columns(file.schema_arrow, path, path, image_column, label_column)
      columns = [name for name in names if name]
      for batch in file.iter_batches(BATCH, row_groups=[group], columns=columns):
        images = batch.column(names[0]).to_pylist()
        labels = batch.column(names[1]).to_pylist() if names[1] else [-1] * len(images)
        for image, label in zip(images, labels, strict=True):
          content = _content(image)
          trouble = "" if content else "no bytes in this row"
          yield str(row), content, -1 if label is None else int(label), trouble
          row += 1
  except pyarrow.ArrowException as error:
    yield "", None, -1, f"row group {group} is damaged: {_line(error)}"


def _content(image: Any) -> bytes | None:
  return image.get("bytes") if isinstance(image, dict) else image


def _columns(
  schema, path: str, where: str, image_column: str, label_column: str
) -> tuple[str, str]:
  """Names of the columns of images and, or "", of labels; UserError if unclear."""
  import pyarrow

  def has_images(name):
    kind = schema.field(name).type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
      kind = kind.field("bytes").type
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)

  found = [name for name in schema.names if has_images(name)]
  usual = [name for name in IMAGE_COLUMNS if name in found]
  chosen = image_column or (usual or (found if len(found) == 1 else [""]))[0]
  if chosen not in found:
    raise errors.UserError(
      f"{where}: {path} has no column of encoded images"
      f"{f' {chosen!r}' if chosen else ' that is plainly one'}; name it by"
      f" --image_column, columns of bytes are {json.dumps(found)}"
    )
  if label_column and label_column not in schema.names:
    raise errors.UserError(
      f"{where}: {path} has no --label_column={label_column}, only"
      f" {json.dumps(schema.names)}"
    )
  labels = [
    name
    for name in LABEL_COLUMNS
    if name in schema.names and pyarrow.types.is_integer(schema.field(name).type)
  ]
  return chosen, label_column or (labels or [""])[0]


def _line(error: Exception) -> str:
  return str(error).splitlines()[0]
