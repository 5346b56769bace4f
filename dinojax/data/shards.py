"""Shards: ArrayRecord files, and datasets that tensorflow-datasets has prepared.

The storage libraries are imported where they are used: each costs up to a second in
every worker process, and a run needs one of them.
"""

import functools
import os
import re
from typing import Any

import numpy as np

from dinojax import errors
from dinojax.data import arrayrecord, class_labels, files, index, label_maps

MAX_READERS = 64  # of array_record, 400 kB each with 32,000 records
LABELS = "label.labels.txt"  # where tfds keeps the names of classes, one a line
BUFFER = 1 << 15  # bytes that such a reader reads ahead
# Datasets with maps, see label_maps.py: the classes of `segmentation_mask` from 1 on.
MASKS = {"oxford_iiit_pet": ("pet", "background", "border")}
DEPTHS = ("nyu_depth_v2",)  # whose `depth` is in metres


class TfdsSource:
  """A split of a prepared tensorflow-datasets dataset, found below TFDS_DATA_DIR."""

  labels = None  # They lie in the records.

  def __init__(self, spec: str, where: str):
    """Finds NAME:SPLIT; never downloads, nor runs a dataset's own code."""
    # NAME may carry a version and SPLIT a range: "mnist:3.0.1:train[:1000]".
    parsed = re.fullmatch(r"(.+):((?:[^:\[\]]|\[[^\[\]]*\])+)", spec)
    if not parsed:
      raise errors.UserError(f"{where} must be tfds:NAME:SPLIT")
    name, split = parsed.groups()
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
      self._masked, self._deep = builder.name in MASKS, builder.name in DEPTHS
      if self._masked:
        skip["segmentation_mask"] = tfds.decode.SkipDecoding()
        self.map_classes = MASKS[builder.name]
      if self._deep:
        self.depth_unit = "m"
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
    self.notes = ()
    parts = builder.info.splits[split].file_instructions
    paths = sorted({str(part.filename) for part in parts})
    self._files = files.described(paths, where)
    self.fingerprint = files.fingerprint_matched(
      self._files, salt=f"{self._split} {len(self)}"
    )

  def __len__(self) -> int:
    """Returns the number of examples in the split."""
    return len(self._records)

  def __getitem__(self, index: int) -> dict:
    """Reads one example."""
    try:
      example = self._records[index]
    except Exception as error:  # of array_record, tfds and their parsers
      for file in self._files:
        files.check_unchanged(file)
      raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    image, label = example["image"], class_labels.NO_LABEL
    if self.class_names and example["label"] is not None:
      label = int(example["label"])
    if image is None:
      raise class_labels.NoImageError("an example without an image", label)
    files.check_size(len(image), label)
    record = {"image": image, "label": label}
    if self._masked:
      values = label_maps.decode(example["segmentation_mask"])
      record["label_map"] = values - np.uint8(1)  # 0, no class, becomes IGNORE
    if self._deep:
      record["depth_map"] = np.asarray(example["depth"], np.float32)
    return record

  def name(self, index: int) -> str:
    """Returns dataset, version, split and position."""
    return f"{self._split}#{index}"


class ArrayRecordSource:
  """ArrayRecord shards, sorted by name, of images or of tf.train.Example.

  An Example holds a bytes feature `image` and perhaps an int64 feature `label`, whose
  names tfds and ingest keep beside the shards. Where shards lie in folders with other
  names, the same number is several classes, and nothing has a label.
  """

  labels = None  # They lie in the records.

  def __init__(self, pattern: str, where: str):
    """Lists the shards, and opens the index of their records."""
    self.where = where
    self._shards = files.match(pattern, where, kind="arrayrecord")
    for shard in self._shards:
      if not errors.is_utf8(shard.path):
        raise errors.UserError(
          f"{where} matches {errors.printable(shard.path)}, which is not UTF-8, and"
          " array_record opens no other names; rename it"
        )
    folders = {os.path.dirname(shard.path) for shard in self._shards}
    names = {_class_names(folder, where) for folder in folders}
    self._labelled = len(names) == 1
    self.class_names = names.pop() if self._labelled else ()
    self.fingerprint = files.fingerprint_matched(
      self._shards, salt=f"{self._labelled} {self.class_names}"
    )
    scan = functools.partial(_scan, where=where)
    self._index = index.open_index(
      "arrayrecord", self._shards, where, fingerprint=self.fingerprint, scan=scan
    )
    self._ends = np.cumsum(self._index.counts).tolist()
    if not self._ends[-1]:
      raise errors.UserError(
        f"{where} matches {len(self._shards)} shards without a record"
      )
    self._open_lazily()
    self.notes = self._notes()

  def _open_lazily(self):
    """Makes what holds open files, which neither pickles nor grows without bound."""
    self._file = files.cache_of_opened()
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
    number, position = index.locate(self._ends, record)
    shard, values = self._shards[number], self._index.values(number)
    if values is None:
      # Not read([position]), whose time grows with the shard.
      data = self._read_by_array_record(shard, position)
    else:
      begin, end = values[position : position + 2].tolist()
      data = arrayrecord.decode_record(self._file(shard).read(begin, end), begin)
    # An Example begins with the tag of its only field; no image format does.
    if not data.startswith(b"\n"):
      return {"image": data, "label": class_labels.NO_LABEL}
    return _parse_example(data, labelled=self._labelled)

  def _read_by_array_record(self, shard: files.File, position: int) -> bytes:
    try:
      return self._reader(shard).read(position, position + 1)[0]
    except (RuntimeError, IndexError):  # damaged, or not there
      files.check_unchanged(shard)
      raise

  def name(self, record: int) -> str:
    """Returns shard and position in it."""
    number, position = index.locate(self._ends, record)
    return f"{errors.printable(self._shards[number].path)}#{position}"

  def _notes(self) -> tuple[str, ...]:
    """A line about shards that array_record has to read."""
    others = [
      shard.path
      for number, shard in enumerate(self._shards)
      if self._index.values(number) is None
    ]
    if not others:
      return ()
    return (
      f"holds {len(others):,} shards (the first: {errors.printable(others[0])}) of"
      " several records a chunk, or compressed otherwise than by zstd: array_record"
      " reads them, slower and with an index of its own in every process; write them"
      " with group_size:1",
    )


def _scan(shard: files.File, *, where: str) -> index.Scanned:
  """Reads number and places of a shard's records; UserError if it is damaged."""
  try:
    count = _count_records(shard.path)  # It compares the footer's hash, too.
    try:
      offsets = arrayrecord.record_offsets(shard.path)
    except ValueError:
      offsets = ()
  except (OSError, RuntimeError) as error:
    raise errors.UserError(
      f"{where} matches a damaged shard, "
      + errors.printable(f"{shard.path}: {error}".splitlines()[0])
    ) from error
  return index.Scanned(count, offsets if len(offsets) == count + 1 else None)


def _count_records(path: str) -> int:
  """Returns the number of records of a shard; RuntimeError if it is damaged."""
  # Here: it costs a second, and a run whose index is written has no need of it.
  from array_record.python import array_record_module

  reader = array_record_module.ArrayRecordReader(path)
  count = reader.num_records()
  reader.close()  # Raises what was wrong since opening; a bad shard counts 0.
  return count


def _class_names(folder: str, where: str) -> tuple[str, ...]:
  """Returns the names of the classes of a folder's shards, () if it names none."""
  path = os.path.join(folder, LABELS)
  try:
    lines = files.read(path).decode().splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
  except FileNotFoundError:
    return ()
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f"{where}: {errors.printable(path)} cannot be read: {error}"
    ) from error
  if len(set(names)) < len(names):
    raise errors.UserError(
      f"{where}: {errors.printable(path)} names a class twice; repair or remove it"
    )
  return tuple(map(errors.printable, names))


def _open_reader(shard: files.File) -> Any:
  """Opens array_record's own reader, for chunks that only it knows."""
  from array_record.python import array_record_module

  return array_record_module.ArrayRecordReader(
    shard.path,
    options="readahead_buffer_size:0,max_parallelism:0",
    file_reader_buffer_size=BUFFER,
  )


def _parse_example(record: bytes, *, labelled: bool) -> dict:
  """Returns image and, if wanted, label of a serialised tf.train.Example."""
  from google.protobuf import message
  from tensorflow_datasets.proto import tf_example_pb2

  try:
    feature = tf_example_pb2.Example.FromString(record).features.feature
  except message.DecodeError as error:
    raise ValueError(f"not a tf.train.Example: {error}") from error
  encoded = feature["image"].bytes_list.value
  found = feature["label"].int64_list.value if labelled else ()
  label = found[0] if found else class_labels.NO_LABEL
  if not encoded:
    reason = "a tf.train.Example without a bytes feature `image`"
    raise class_labels.NoImageError(reason, label)
  files.check_size(len(encoded[0]), label)
  return {"image": encoded[0], "label": label}
