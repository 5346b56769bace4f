"""Shards of the kept images: ArrayRecord of tf.train.Example, as tfds writes them.

Shard k holds records k * n to (k + 1) * n of all kept images, in the order of the
inputs, which are read a second time for it. So shards depend on inputs and settings
alone, and each is written by itself, atomically.
"""

import collections
import contextlib
import errno
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dinojax import durable, errors
from dinojax.curation import examine, inputs, jobs

SPLIT = "train"
FORMAT = "array_record"
GROUP = "group_size:1"  # records that are decompressed together: any can be read alone


def dataset_name(out: pathlib.Path) -> str:
  """Name of the dataset: of OUT, or of the folder of which OUT is a version."""
  version = re.fullmatch(r"\d+\.\d+\.\d+", out.name)
  name = re.sub(r"\W+", "_", (out.resolve().parent if version else out).name)
  return name if re.match(r"[A-Za-z]", name) else f"images_{name}"


def shard_name(out: pathlib.Path, shard: int, shards: int) -> str:
  """File name of a shard."""
  return f"{dataset_name(out)}-{SPLIT}.{FORMAT}-{shard:05d}-of-{shards:05d}"


def layout(job: jobs.Job, counts: dict[int, int]) -> list[list[tuple[int, int, int]]]:
  """Which kept images go into each shard, as (part, first, last + 1) of its kept ones.

  Args:
    job: says how many records a shard holds.
    counts: kept images of each part, in order.
  """
  size = job.settings.records_per_shard
  shards, room = [], 0
  for number, count in counts.items():
    start = 0
    while start < count:
      if not room:
        shards.append([])
        room = size
      stop = min(count, start + room)
      shards[-1].append((number, start, stop))
      room -= stop - start
      start = stop
  return shards


def write_shard(
  shard: int,
  *,
  job: jobs.Job,
  parts: list[jobs.Part],
  plan: list,
  labels: dict[int, list[int]],
) -> None:
  """Writes one shard; one task. plan: of `layout`. labels: of `manifest.classes`."""
  path = job.work / "out" / shard_name(job.out, shard, len(plan))
  done = job.path("shards", shard, "json")
  if done.exists():
    return
  new = durable.temporary_path(job.out.with_name(f"{job.out.name}.{path.name}"))
  size = count = 0
  try:
    with durable.os_errors_as_user_errors(job.out):
      path.parent.mkdir(parents=True, exist_ok=True)
      with _writer(new) as write:
        for record in _examples(job, parts, plan[shard], labels):
          write(record)
          size, count = size + len(record), count + 1
      check_count(new, count)
      durable.fsync(new)
      new.replace(path)
      durable.fsync(path.parent)
  finally:
    new.unlink(missing_ok=True)
  job.save(done, {"records": count, "bytes": size})


@contextlib.contextmanager
def _writer(path: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
  """A function that appends a record to a new shard, which is closed in the end.

  Raises:
    OSError: what the file system reports, which array_record puts into a text.
  """
  from array_record.python import array_record_module

  @contextlib.contextmanager
  def os_errors():
    try:
      yield
    except RuntimeError as error:
      raise os_error(error) from error

  def write(record: bytes) -> None:
    with os_errors():
      writer.write(record)

  with os_errors():
    writer = array_record_module.ArrayRecordWriter(str(path), GROUP)
  try:
    yield write
  except BaseException:
    with contextlib.suppress(RuntimeError):  # the first error is the one to report
      writer.close()
    raise
  with os_errors():
    writer.close()


def os_error(error: RuntimeError) -> OSError:
  """The OSError in a text such as "write() failed: No space left on device; ..."."""
  text = str(error).partition(";")[0]
  for number in errno.errorcode:
    if text.endswith(f" failed: {os.strerror(number)}"):
      return OSError(number, os.strerror(number))
  return OSError(text)


def shard_summary(
  job: jobs.Job, parts: list[jobs.Part], plan: list, shard: int
) -> dict[str, Any]:
  """The entry of a written shard in the manifest."""
  sources = collections.Counter()
  for number, start, stop in plan[shard]:
    sources[errors.printable(parts[number].spec)] += stop - start
  name = shard_name(job.out, shard, len(plan))
  done = json.loads(job.path("shards", shard, "json").read_text())
  return {"name": name, **done, "sources": dict(sources)}


def check_count(path: pathlib.Path, count: int) -> None:
  """Raises OSError unless a shard holds `count` records."""
  from array_record.python import array_record_module

  try:
    reader = array_record_module.ArrayRecordReader(str(path))
    found = reader.num_records()
    reader.close()
  except RuntimeError as error:
    raise os_error(error) from error
  if found != count:
    raise OSError(f"{found} of {count} records arrived in {path.name}")


def _examples(
  job: jobs.Job, parts: list[jobs.Part], spans: list, labels: dict
) -> Iterator[bytes]:
  """Yields the serialised examples of some kept images of some parts."""
  from tensorflow_datasets.proto import tf_example_pb2

  for number, start, stop in spans:
    rows = jobs.rows_of(job.kept_ids(number)[start:stop])
    seen = job.rows(number)
    found = inputs.read(parts[number], job, rows.tolist())
    for row, record in itertools.zip_longest(rows.tolist(), found):
      if record is None or record.image is None or record.row != row:
        raise _changed(parts[number])
      if not np.array_equal(examine.digest(record.image), seen["bytes"][row]):
        raise _changed(parts[number])
      example = tf_example_pb2.Example()
      feature = example.features.feature
      image = examine.shrunk(record.image, job.settings)
      feature["image"].bytes_list.value.append(image)
      label = max(record.label, -1)  # also where it is text
      if label >= 0 and (known := labels.get(parts[number].source)):
        label = known[label]
      feature["label"].int64_list.value.append(label)
      feature["source"].bytes_list.value.append(record.name.encode())
      yield example.SerializeToString(deterministic=True)


def _changed(part: jobs.Part) -> errors.UserError:
  return errors.UserError(
    f"images of {part.spec} have changed since this ingest began; begin another one,"
    " with another --out"
  )


def write_metadata(
  job: jobs.Job, folder: pathlib.Path, shards: list[dict], class_names: list[str]
) -> None:
  """Writes the metadata by which tensorflow-datasets opens the shards.

  Args:
    job: names the output.
    folder: of the shards.
    shards: {"records", "bytes"} of each.
    class_names: by label; []: there are no labels, or they number no classes.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import naming

  template = naming.ShardedFileTemplate(
    data_dir=folder,
    template=naming.DEFAULT_FILENAME_TEMPLATE,
    dataset_name=dataset_name(job.out),
    split=SPLIT,
    filetype_suffix=FORMAT,
  )
  split = tfds.core.SplitInfo(
    name=SPLIT,
    shard_lengths=[shard["records"] for shard in shards],
    num_bytes=sum(shard["bytes"] for shard in shards),
    filename_template=template,
  )
  labels = tfds.features.ClassLabel(names=class_names)
  version = re.fullmatch(r"\d+\.\d+\.\d+", job.out.name)
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": labels if class_names else tfds.features.Scalar(np.int64),
        "source": tfds.features.Text(),
      }
    ),
    split_infos=[split],
    version=version[0] if version else "1.0.0",
    check_data=False,  # would need TensorFlow
    description="Images chosen by dinojax.ingest; see manifest.json.",
  )
