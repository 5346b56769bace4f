"""Records kept in shards: ArrayRecord files, and datasets that tfds has prepared.

Both meet `sources.Source`. The storage libraries are imported where they are used: each
costs up to a second in every worker process, and a run needs one of them.
"""

import concurrent.futures
import glob
import hashlib
import os

import numpy as np

from dinojax import errors


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
    self.num_classes = label.num_classes if labelled else 0
    identity = f"{self._split} {len(self)}"
    self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

  def __len__(self) -> int:
    """Returns the number of examples in the split."""
    return len(self._records)

  def __getitem__(self, index: int) -> dict:
    """Reads one example."""
    example = self._records[index]
    label = int(example["label"]) if self.num_classes else -1
    return {"image": example["image"], "label": label}

  def name(self, index: int) -> str:
    """Returns dataset, version, split and position."""
    return f"{self._split}#{index}"


class ArrayRecordSource:
  """ArrayRecord shards, sorted by name, of images or of tf.train.Example.

  An Example holds a bytes feature `image` and perhaps an int64 feature `label`.
  """

  num_classes = 0  # Shards name no classes, and counting labels would read them all.

  def __init__(self, pattern: str, where: str):
    """Opens every shard once to count its records."""
    from array_record.python import array_record_data_source

    paths = sorted(glob.glob(pattern, recursive=True))
    if not paths:
      raise errors.UserError(f"{where} matches no file; give a pattern of shards")
    try:
      with concurrent.futures.ThreadPoolExecutor(16) as pool:
        counts = list(pool.map(_count_records, paths))
    except RuntimeError as error:
      raise errors.UserError(f"{where} matches a damaged shard, {error}") from error
    if not sum(counts):
      raise errors.UserError(f"{where} matches {len(paths)} shards without a record")
    self.where = where
    self._paths = paths
    self._ends = np.cumsum(counts)
    shards = list(zip(paths, counts, strict=True))
    # A path with its range spares opening every shard again.
    self._records = array_record_data_source.ArrayRecordDataSource(
      [f"{path}[0:{count}]" for path, count in shards]
    )
    identity = "\n".join(
      f"{os.path.basename(path)} {count} {os.path.getsize(path)}"
      for path, count in shards
    )
    self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

  def __len__(self) -> int:
    """Returns the number of records of all shards."""
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> dict:
    """Reads one record."""
    record = self._records[index]
    # An Example begins with the tag of its only field; no image format does.
    if record.startswith(b"\n"):
      return _parse_example(record)
    return {"image": record, "label": -1}

  def name(self, index: int) -> str:
    """Returns shard and position in it."""
    shard = int(np.searchsorted(self._ends, index, side="right"))
    start = self._ends[shard - 1] if shard else 0
    return f"{self._paths[shard]}#{index - start}"


def _count_records(path: str) -> int:
  """Returns the number of records of a shard, or raises RuntimeError naming it."""
  from array_record.python import array_record_module

  reader = array_record_module.ArrayRecordReader(path)
  count = reader.num_records()
  try:
    reader.close()  # Raises what was wrong since opening; a bad shard counts 0.
  except RuntimeError as error:
    raise RuntimeError(f"{path}: {error}") from error
  return count


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
