"""Image features in Parquet, NumPy or Zarr, written in parts that each are final.

Part k is rows [k * R, (k + 1) * R) of the source. A part that is there is complete, so
a run that was killed resumes with those that are missing.

parquet  a folder of part-K.parquet, which Arrow, Spark, pandas, polars, DuckDB read
npy      OUT.parts/K.npz, joined at the end to one array; the other columns are in CSV
zarr     a Zarr 3 group, whose chunks along the rows are the parts
"""

import contextlib
import csv
import dataclasses
import importlib
import io
import json
import math
import pathlib
import shutil

import numpy as np

from dinojax import durable, errors

# A kill loses one part, which is held in memory while it fills.
PART_BYTES = 64 * 2**20  # of features, at most
PART_BATCHES = 16  # at most
PARTS = 32  # at least, if there are as many batches


def rows_per_part(sizes: dict[str, tuple[int, ...]], batch_size: int, rows: int) -> int:
  """R: whole batches within the limits above, but at least one.

  Args:
    sizes: as of `Shape`.
    batch_size: rows of a batch.
    rows: N.
  """
  row_bytes = 4 * sum(map(math.prod, sizes.values()))
  batches = min(
    PART_BYTES // (row_bytes * batch_size), rows // (PARTS * batch_size), PART_BATCHES
  )
  return batch_size * max(batches, 1)


@dataclasses.dataclass(frozen=True)
class Shape:
  """Of all rows: N of them, R rows a part, and what one holds in float32.

  sizes: {"feature": (F,)}, perhaps with "patches": (P, D).
  """

  rows: int
  rows_per_part: int
  sizes: dict[str, tuple[int, ...]]

  @property
  def parts(self) -> int:
    """Returns how many parts there are; the last may be short."""
    return -(-self.rows // self.rows_per_part)

  def span(self, k: int) -> tuple[int, int]:
    """Returns the first row of part k, and where it ends."""
    return k * self.rows_per_part, min((k + 1) * self.rows_per_part, self.rows)


@dataclasses.dataclass(frozen=True)
class Part:
  """Rows of one part; r of them.

  index: [r] int64, the record of the source. name: its file, or shard and position.
  label: [r] int32, -1 for none. valid: [r] bool, False where the image is unreadable,
  and its features NaN. feature: [r, F] float32. patches: [r, P, D] float32, or None.
  """

  index: np.ndarray
  name: list[str]
  label: np.ndarray
  valid: np.ndarray
  feature: np.ndarray
  patches: np.ndarray | None = None


class Parquet:
  """A folder of Parquet files, one a part."""

  def __init__(self, out: pathlib.Path, shape: Shape):
    """Makes the folder, if it is not there; UserError if it cannot."""
    self._arrow, self._parquet = _import(out, "pyarrow", "pyarrow.parquet")
    self.out, self.shape = out, shape
    with durable.os_errors_as_user_errors(out):
      out.mkdir(exist_ok=True)

  def done(self) -> set[int]:
    """Returns the parts that are there."""
    return {int(path.stem.removeprefix("part-")) for path in self.out.glob("part-*")}

  def finished(self) -> bool:
    """Whether all is there, as people read it."""
    return len(self.done()) == self.shape.parts

  def write(self, k: int, part: Part) -> None:
    """Writes one part; UserError if it cannot."""
    arrow, rows = self._arrow, len(part.index)
    columns = {
      "index": arrow.array(part.index),
      "name": arrow.array(part.name, arrow.string()),
      "label": arrow.array(part.label, mask=part.label < 0),
      "valid": arrow.array(part.valid),
      "feature": self._vectors(part.feature),
    }
    fields = [arrow.field(name, x.type) for name, x in columns.items()]
    if part.patches is not None:
      columns["patches"] = self._vectors(part.patches.reshape(rows, -1))
      shape = {"shape": json.dumps(part.patches.shape[1:])}
      fields.append(arrow.field("patches", columns["patches"].type, metadata=shape))
    table = arrow.table(list(columns.values()), schema=arrow.schema(fields))
    path = self.out / f"part-{k:06}.parquet"
    with durable.atomic_write(path, out=self.out) as file:
      # No two features are alike: a dictionary of them would be longer than they are.
      self._parquet.write_table(table, file, row_group_size=rows, use_dictionary=False)

  def finish(self) -> None:
    """Removes what killed processes left."""
    durable.remove_leftovers(self.out)

  def _vectors(self, x: np.ndarray):
    flat = self._arrow.array(x.reshape(-1))
    return self._arrow.FixedSizeListArray.from_arrays(flat, x.shape[1])


class Npy:
  """features.npy [N, F], features.csv, and features.patches.npy [N, P, D]."""

  def __init__(self, out: pathlib.Path, shape: Shape):
    """Makes the folder of parts; UserError if it cannot."""
    self.out, self.shape = out, shape
    _, self._patches, self._table, self._parts = self.paths(out)
    with durable.os_errors_as_user_errors(out):
      self._parts.mkdir(exist_ok=True)

  @staticmethod
  def paths(out: pathlib.Path) -> list[pathlib.Path]:
    """Returns where features, patches and other columns go, and the parts first."""
    names = out.name, f"{out.stem}.patches.npy", f"{out.stem}.csv", f"{out.name}.parts"
    return [out.with_name(name) for name in names]

  def done(self) -> set[int]:
    """Returns the parts that are there."""
    if self.finished():
      return set(range(self.shape.parts))
    return {int(path.stem) for path in self._parts.glob("*.npz")}

  def finished(self) -> bool:
    """Whether all is there, as people read it."""
    return self.out.exists()

  def write(self, k: int, part: Part) -> None:
    """Writes one part; UserError if it cannot."""
    arrays = {name: x for name, x in vars(part).items() if x is not None}
    with durable.atomic_write(self._parts / f"{k:06}.npz", out=self.out) as file:
      np.savez(file, **arrays)

  def finish(self) -> None:
    """Joins the parts, one in memory at a time, and removes them."""
    durable.remove_leftovers(self.out)
    if not self.finished():
      self._join()
    shutil.rmtree(self._parts, ignore_errors=True)  # gone if another has joined them

  def _join(self) -> None:
    shape = self.shape
    paths = {
      "feature": self.out,  # it shows that all is there: the first one is named last
      "patches": self._patches,
      "table": self._table,
    }
    with contextlib.ExitStack() as stack:
      files = {
        name: stack.enter_context(durable.atomic_write(path, out=self.out))
        for name, path in paths.items()
        if name in (*shape.sizes, "table")
      }
      for name, size in shape.sizes.items():
        whole = (shape.rows, *size)
        header = {"descr": "<f4", "fortran_order": False, "shape": whole}
        np.lib.format.write_array_header_1_0(files[name], header)
      text = io.TextIOWrapper(files["table"], "utf-8", newline="", write_through=True)
      stack.callback(text.detach)
      table = csv.writer(text, lineterminator="\n")
      table.writerow(("index", "name", "label", "valid"))
      for k in range(shape.parts):
        with np.load(self._parts / f"{k:06}.npz") as part:
          for name in shape.sizes:
            files[name].write(part[name].astype("<f4", copy=False).data)
          labels = ["" if label < 0 else label for label in part["label"].tolist()]
          table.writerows(
            zip(part["index"], part["name"], labels, part["valid"], strict=True)
          )


class Zarr:
  """A Zarr 3 group of arrays, one for each field of `Part`, in chunks of one part."""

  def __init__(self, out: pathlib.Path, shape: Shape):
    """Makes the group, if it is not there; UserError if it cannot."""
    (self._zarr,) = _import(out, "zarr")
    self.out, self.shape = out, shape
    with durable.os_errors_as_user_errors(out):
      if not out.exists():
        self._create()

  def done(self) -> set[int]:
    """Returns the parts that are there."""
    chunks = self.out / "valid" / "c"  # written after the other arrays
    return {int(path.name) for path in chunks.glob("*") if path.name.isdigit()}

  def finished(self) -> bool:
    """Whether all is there, as people read it."""
    return len(self.done()) == self.shape.parts

  def write(self, k: int, part: Part) -> None:
    """Writes one part; UserError if it cannot."""
    arrays = {name: x for name, x in vars(part).items() if x is not None}
    arrays["name"] = np.array(part.name, object)
    start, stop = self.shape.span(k)
    # Also what equals the fill value: a chunk shows that its part is there.
    all_chunks = self._zarr.config.set({"array.write_empty_chunks": True})
    with durable.os_errors_as_user_errors(self.out), all_chunks:
      group = self._zarr.open_group(self.out, mode="r+")
      for name in sorted(arrays, key="valid".__eq__):
        group[name][start:stop] = arrays[name]  # elsewhere, and then renamed, by Zarr
        inner = ["0"] * (group[name].ndim - 1)
        durable.fsync(self.out.joinpath(name, "c", str(k), *inner))

  def finish(self) -> None:
    """Removes what killed processes left."""
    for half_written in self.out.glob("*/c/**/*.partial"):
      half_written.unlink(missing_ok=True)
    durable.remove_leftovers(self.out)

  def _create(self) -> None:
    """Builds the group elsewhere and renames it, so that it is never incomplete."""
    shape = self.shape
    kinds = {
      "index": ("int64", ()),
      "name": ("string", ()),
      "label": ("int32", ()),
      "valid": ("bool", ()),
      **{name: ("float32", size) for name, size in shape.sizes.items()},
    }
    new = durable.temporary_path(self.out)
    group = self._zarr.create_group(new)
    for name, (kind, rest) in kinds.items():
      group.create_array(
        name,
        shape=(shape.rows, *rest),
        chunks=(min(shape.rows_per_part, shape.rows), *rest),
        dtype=kind,
        compressors="auto" if name == "name" else None,  # floats hardly get smaller
      )
    try:
      new.rename(self.out)
    except OSError:
      shutil.rmtree(new)
      if not self.out.exists():  # it does if another process was first
        raise


FORMATS = {".parquet": Parquet, ".npy": Npy, ".zarr": Zarr}


def paths(out: pathlib.Path) -> list[pathlib.Path]:
  """Returns all that an output may consist of, besides its manifest."""
  return Npy.paths(out) if out.suffix == ".npy" else [out]


def check_path(text: str | None, *, flag: str) -> pathlib.Path:
  """The path of a flag; UserError unless it ends in one of FORMATS."""
  path = pathlib.Path(text or "").expanduser()
  if path.suffix not in FORMATS:
    raise errors.UserError(f"{flag}={text} must end in {', '.join(FORMATS)}")
  return path


def _import(out: pathlib.Path, *names: str) -> list:
  """Modules that only one format needs."""
  try:
    return [importlib.import_module(name) for name in names]
  except ModuleNotFoundError as error:
    raise errors.UserError(
      f"--out={out} needs {names[0]}: pip install 'dinojax[embed]'; .npy needs nothing"
    ) from error
