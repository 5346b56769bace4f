"""Parts that are whole or not there, in each format."""

import sys

import numpy as np
import pyarrow.parquet
import pytest
import zarr

from dinojax import errors, feature_files

SHAPE = feature_files.Shape(
  rows=10, rows_per_part=4, sizes={"feature": (3,), "patches": (2, 3)}
)
FORMATS = feature_files.FORMATS.items()


def part(k, seed=0):
  start, stop = SHAPE.span(k)
  rows = stop - start
  rng = np.random.default_rng((seed, k))
  return feature_files.Part(
    index=np.arange(start, stop),
    name=[f'ä,"{i}"\n.png' for i in range(start, stop)],
    label=np.array([-1, 5, 6, 7][:rows], np.int32),
    valid=np.array([False, True, True, True][:rows]),
    feature=rng.normal(size=(rows, 3)).astype(np.float32),
    patches=rng.normal(size=(rows, 2, 3)).astype(np.float32),
  )


def test_parts_cover_all_rows_once():
  spans = [SHAPE.span(k) for k in range(SHAPE.parts)]
  assert spans == [(0, 4), (4, 8), (8, 10)]


@pytest.mark.parametrize(
  ("width", "batch_size", "rows", "wanted"),
  [
    (1024, 256, 10**6, 16 * 256),  # at most 16 batches
    (8192, 256, 10**6, 2048),  # 64 MiB
    (2**20, 256, 10**6, 256),  # at least one batch
    (8192, 300, 10**6, 1800),  # whole batches
    (1024, 256, 40_000, 4 * 256),  # at least 32 parts
    (1024, 256, 450, 256),
  ],
)
def test_a_part_is_of_whole_batches_and_bounded(width, batch_size, rows, wanted):
  sizes = {"feature": (width // 2,), "patches": (1, width // 2)}
  assert feature_files.rows_per_part(sizes, batch_size, rows) == wanted


@pytest.mark.parametrize(("ending", "kind"), FORMATS)
def test_parts_in_any_order_and_twice_make_the_same_files(tmp_path, ending, kind):
  outs = [tmp_path / f"{name}{ending}" for name in "ab"]
  for out, order in zip(outs, ([0, 1, 2], [2, 0, 2, 1]), strict=True):
    files = kind(out, SHAPE)
    for i, k in enumerate(order):
      assert files.done() == set(order[:i])
      assert not files.finished()
      kind(out, SHAPE).write(k, part(k))
    assert files.done() == {0, 1, 2}
    files.finish()
    assert files.finished()
    kind(out, SHAPE).finish()  # once more changes nothing
  a, b = (
    {
      str(path.relative_to(tmp_path))[1:]: path.read_bytes()
      for path in sorted(tmp_path.rglob("*"))
      if path.is_file() and path.relative_to(tmp_path).parts[0].startswith(name)
    }
    for name in "ab"
  )
  assert a == b and a


@pytest.mark.parametrize(("ending", "kind"), FORMATS)
def test_a_part_that_cannot_be_written_is_not_there(
  tmp_path, monkeypatch, ending, kind
):
  out = tmp_path / f"a{ending}"
  files = kind(out, SHAPE)
  files.write(0, part(0))

  def full(*_):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr("os.fsync", full)
    with pytest.raises(errors.UserError, match=r"No space left.*restart the same"):
      files.write(1, part(1))
  assert files.done() == {0}


@pytest.mark.parametrize(("ending", "kind"), FORMATS)
def test_a_part_of_nothing_but_zeros_counts_as_written(tmp_path, ending, kind):
  files = kind(tmp_path / f"a{ending}", SHAPE)
  zeros = {name: 0 * x for name, x in vars(part(1)).items() if name != "name"}
  zeros["valid"] = np.zeros(4, bool)  # unreadable images, all of them
  files.write(1, feature_files.Part(name=[""] * 4, **zeros))
  assert files.done() == {1}


def test_parquet_keeps_types_nulls_and_the_shape_of_patches(tmp_path):
  files = feature_files.Parquet(tmp_path / "a.parquet", SHAPE)
  for k in range(SHAPE.parts):
    files.write(k, part(k))
  table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
  kinds = {field.name: str(field.type) for field in table.schema}
  assert kinds == {
    "index": "int64",
    "name": "string",
    "label": "int32",
    "valid": "bool",
    "feature": "fixed_size_list<element: float>[3]",
    "patches": "fixed_size_list<element: float>[6]",
  }
  assert table.schema.field("patches").metadata[b"shape"] == b"[2, 3]"
  assert table["label"].to_pylist() == [None, 5, 6, 7, None, 5, 6, 7, None, 5]
  assert table["name"].to_pylist() == [n for k in range(3) for n in part(k).name]
  wanted = np.concatenate([part(k).patches.reshape(-1, 6) for k in range(3)])
  np.testing.assert_array_equal(np.stack(table["patches"].to_pylist()), wanted)


def test_zarr_is_of_version_3_and_its_chunks_are_the_parts(tmp_path):
  feature_files.Zarr(tmp_path / "a.zarr", SHAPE)
  group = zarr.open_group(tmp_path / "a.zarr", mode="r")
  assert group.metadata.zarr_format == 3
  chunks = {name: array.chunks for name, array in group.arrays()}
  assert chunks["feature"] == (4, 3) and chunks["patches"] == (4, 2, 3)
  assert chunks["name"] == chunks["valid"] == chunks["label"] == (4,)


def test_joining_holds_one_part_in_memory(tmp_path, monkeypatch):
  files = feature_files.Npy(tmp_path / "a.npy", SHAPE)
  for k in range(SHAPE.parts):
    files.write(k, part(k))
  open_now, most, load = set(), [], np.load

  class Watched:
    def __init__(self, path):
      self.path, self.part = path, load(path)

    def __enter__(self):
      open_now.add(self.path)
      most.append(len(open_now))
      return self.part

    def __exit__(self, *_):
      open_now.discard(self.path)
      self.part.close()

  monkeypatch.setattr(np, "load", Watched)
  files.finish()
  assert most == [1, 1, 1]


@pytest.mark.parametrize(("name", "ending"), [("pyarrow", "parquet"), ("zarr", "zarr")])
def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch, name, ending):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(errors.UserError, match=rf"needs {name}: pip install 'dinojax"):
    feature_files.FORMATS[f".{ending}"](tmp_path / f"a.{ending}", SHAPE)
