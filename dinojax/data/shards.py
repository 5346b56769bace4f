"""Records kept in shards: ArrayRecord files, and datasets that tfds has prepared.

Both meet `sources.Source`. The storage libraries are imported where they are used: each
costs up to a second in every worker process, and a run needs one of them.
"""

import bisect
import functools
import glob
import hashlib
import os
import resource
from typing import Any

import numpy as np

from dinojax import errors
from dinojax.data import arrayrecord, index

MAX_FILES = 8_192  # open shards per process, where its limit allows so many
MAX_READERS = 64  # of array_record, 400 kB each with 32,000 records
LABELS = "label.labels.txt"  # where tfds keeps the names of classes, one a line
BUFFER = 1 << 15  # bytes that such a reader reads at once


class TfdsSource:
  """A split of a prepared tensorflow-datasets dataset, found below TFDS_DATA_DIR."""

  def __init__(self, name: str, split: str, where: str):
    """Finds dataset and split; never downloads, nor runs a dataset's own code."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    data_dir = os.environ.get("TFDS_DATA_DIR", tfds.core.constants.DATA_DIR)
    try:
      builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
    except ValueError as error:
      raise errors.UserError(
        f"{where} is not prepared in {data_dir}; set TFDS_DATA_DIR, or prepare it by "
        f'tfds.builder("{name}", file_format="array_record").download_and_prepare()'
      ) from error
    features = builder.info.features
    if "image" not in features:
      raise errors.UserError(f"{where} has no `image`, only {', '.join(features)}")
    try:
      skip = {"image": tfds.decode.SkipDecoding()}
      self._records = builder.as_data_source(split, decoders=skip)
    except NotImplementedError as error:
      raise errors.UserError(
        f"{where} is stored in a format that needs TensorFlow; prepare it again with "
        'file_format="array_record"'
      ) from error
    except ValueError as error:  # Says which splits there are.
      raise errors.UserError(f"{where}: {str(error).splitlines()[0]}") from error
    self.where = where
    self._split = f"{builder.info.full_name}:{split}"
    label = dict(features.items()).get("label")
    labelled = isinstance(label, tfds.features.ClassLabel)
    self.class_names = tuple(label.names) if labelled else ()
    identity = f"{self._split} {len(self)}"
    self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

  def __len__(self) -> int:
    """Returns the number of examples in the split."""
    return len(self._records)

  def __getitem__(self, index: int) -> dict:
    """Reads one example."""
    example = self._records[index]
    label = int(example["label"]) if self.class_names else -1
    return {"image": example["image"], "label": label}

  def name(self, index: int) -> str:
    """Returns dataset, version, split and position."""
    return f"{self._split}#{index}"


class ArrayRecordSource:
  """ArrayRecord shards, sorted by name, of images or of tf.train.Example.

  An Example holds a bytes feature `image` and perhaps an int64 feature `label`, whose
  names tfds and ingest keep beside the shards. Where shards lie in folders with other
  names, the same number is several classes, and nothing has a label.
  """

  def __init__(self, pattern: str, where: str):
    """Lists the shards, and opens the index of their records."""
    if "://" in pattern:
      raise errors.UserError(
        f"{where} is a bucket, and shards are read as files; mount it, for example by "
        "gcsfuse, or copy it to local disks, and give that folder"
      )
    paths = sorted(glob.glob(pattern, recursive=True))
    if not paths:
      raise errors.UserError(f"{where} matches no file; give a pattern of shards")
    try:
      self._shards = index.list_shards(paths)
    except OSError as error:
      raise errors.UserError(f"{where} cannot be read: {error}") from error
    self.where = where
    self._index = index.open_index(self._shards, where)
    self._ends = np.cumsum(self._index.counts).tolist()
    if not self._ends[-1]:
      raise errors.UserError(f"{where} matches {len(paths)} shards without a record")
    self._open_lazily()
    folders = {os.path.dirname(path) for path in paths}
    names = {_class_names(folder, where) for folder in folders}
    self._labelled = len(names) == 1
    self.class_names = names.pop() if self._labelled else ()
    identity = "\n".join(
      f"{os.path.basename(path)} {count} {size}"
      for (path, size, _), count in zip(self._shards, self._index.counts, strict=True)
    )
    self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

  def _open_lazily(self):
    """Makes what holds open files, which neither pickles nor grows without bound."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The least recently used is dropped, and so closed; a thread at it keeps it.
    self._file = functools.lru_cache(min(soft // 2, MAX_FILES))(_File)
    self._reader = functools.lru_cache(MAX_READERS)(_open_reader)

  def __getstate__(self) -> dict:
    """Leaves open files behind."""
    return {k: v for k, v in vars(self).items() if k not in ("_file", "_reader")}

  def __setstate__(self, state: dict):
    """Comes without open files."""
    vars(self).update(state)
    self._open_lazily()

  def __len__(self) -> int:
    """Returns the number of records of all shards."""
    return self._ends[-1]

  def __getitem__(self, record: int) -> dict:
    """Reads one record."""
    number, position = self._locate(record)
    shard, place = self._shards[number], self._index.place(number, position)
    if place is None:
      # Not read([position]), whose time grows with the shard.
      data = self._reader(shard).read(position, position + 1)[0]
    else:
      begin, end = place
      data = arrayrecord.decode_record(self._file(shard).read(begin, end), begin)
    # An Example begins with the tag of its only field; no image format does.
    if not data.startswith(b"\n"):
      return {"image": data, "label": -1}
    example = _parse_example(data)
    return example if self._labelled else example | {"label": -1}

  def name(self, record: int) -> str:
    """Returns shard and position in it."""
    number, position = self._locate(record)
    return f"{self._shards[number].path}#{position}"

  def _locate(self, record: int) -> tuple[int, int]:
    """Number of the shard, and position in it."""
    if not 0 <= record < len(self):
      raise IndexError(f"record {record} of {len(self)}")
    number = bisect.bisect_right(self._ends, record)
    return number, record - (self._ends[number - 1] if number else 0)


def _class_names(folder: str, where: str) -> tuple[str, ...]:
  """Names of the classes of a folder's shards, () if it names none."""
  path = os.path.join(folder, LABELS)
  try:
    with open(path, encoding="utf-8") as file:
      names = tuple(line.strip() for line in file if line.strip())
  except FileNotFoundError:
    return ()
  except (OSError, ValueError) as error:
    raise errors.UserError(f"{where}: {path} cannot be read: {error}") from error
  if len(set(names)) < len(names):
    raise errors.UserError(f"{where}: {path} names a class twice; repair or remove it")
  return names


class _File:
  """An open shard, closed when nobody holds it."""

  def __init__(self, shard: index.Shard):
    self._descriptor = None
    self._descriptor = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
    found = os.fstat(self._descriptor)
    if (found.st_size, found.st_mtime_ns) != (shard.size, shard.modified):
      raise OSError(f"{shard.path} has changed since the run began")

  def __del__(self):
    if self._descriptor is not None:
      os.close(self._descriptor)

  def read(self, begin: int, end: int) -> bytes:
    """Returns the bytes from `begin` to `end`, or what there is of them."""
    return os.pread(self._descriptor, end - begin, begin)


def _open_reader(shard: index.Shard) -> Any:
  """Opens array_record's own reader, for chunks that only it knows."""
  from array_record.python import array_record_module

  return array_record_module.ArrayRecordReader(
    shard.path,
    options="readahead_buffer_size:0,max_parallelism:0",
    file_reader_buffer_size=BUFFER,
  )


def _parse_example(record: bytes) -> dict:
  """Returns image and label of a serialised tf.train.Example."""
  from google.protobuf import message
  from tensorflow_datasets.proto import tf_example_pb2

  try:
    feature = tf_example_pb2.Example.FromString(record).features.feature
  except message.DecodeError as error:
    raise ValueError(f"not a tf.train.Example: {error}") from error
  encoded = feature["image"].bytes_list.value
  labels = feature["label"].int64_list.value
  if not encoded:
    raise ValueError("a tf.train.Example without a bytes feature `image`")
  return {"image": encoded[0], "label": labels[0] if labels else -1}
