"""manifest.json: counts of kept and dropped images, classes, shards and settings."""

import collections
import importlib.metadata
import itertools
import os
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

import dinojax
from dinojax import errors
from dinojax.curation import jobs
from dinojax.data import class_labels

VERSIONS = ("apache-beam", "array_record", "faiss-cpu", "numpy", "pillow", "pyarrow")
VERSIONS += ("opencv-python-headless", "tensorflow-datasets")
# Reasons that are suspect where they drop most images, and what may be behind each.
SUSPECT = {
  "unreadable": "dropped.csv says why",
  "animated": "--animated keeps them",
  "too many pixels": "raise --max_pixels",
  "too small": "lower --min_side",
  "too elongated": "raise --max_aspect",
  "exact duplicate": "look at report.html whether they are equal",
  "near duplicate": "look at report.html whether they are; if not, lower --near_bits or"
  " --near_difference",
  "similar embedding": "a hardly trained backbone finds all images similar: check"
  " --checkpoint, or raise --near_cosine",
  "in an excluded set": "check that --exclude is not the set to train on",
}


def count_images(job: jobs.Job, parts: list[jobs.Part]) -> dict[str, Any]:
  """Counts over all images, from the scan and the drops."""
  inputs = collections.defaultdict(collections.Counter)
  sides = collections.Counter()
  labels = collections.defaultdict(set)
  kept_bytes = text_labels = 0
  for part in parts:
    rows, reasons = job.rows(part.number), job.reasons(part.number)
    counts = inputs[part.source]
    counts["images"] += len(rows)
    counts["bytes"] += int(rows["size"].sum())
    if part.excluded:
      counts["not compared"] += int((rows["reason"] > 0).sum())
      continue
    for reason, count in enumerate(np.bincount(reasons).tolist()):
      if count:
        counts[jobs.REASONS[reason] or "kept"] += count
    kept = rows[reasons == 0]
    kept_bytes += int(kept["size"].sum())
    shorter = np.minimum(kept["width"], kept["height"])
    powers = np.floor(np.log2(np.maximum(shorter, 1))).astype(int)
    sides.update(powers.tolist())
    labels[part.source] |= set(np.unique(np.maximum(kept["label"], -1)).tolist())
    text_labels += int((kept["label"] == class_labels.NOT_A_CLASS).sum())
  return {
    "inputs": {number: dict(counts) for number, counts in sorted(inputs.items())},
    "kept_bytes": kept_bytes,
    "shorter_side": {
      f"{2**power} to {2 ** (power + 1) - 1}": count
      for power, count in sorted(sides.items())
    },
    "labels": {number: found for number, found in labels.items() if found - {-1}},
    "text_labels": text_labels,
  }


def classes(
  labels: dict[int, set[int]], names: dict[int, Sequence[str]]
) -> tuple[list[str], dict[int, list[int]]]:
  """One set of classes of the labels of all inputs, matched by their names.

  Args:
    labels: those found in each input that has any; -1 is none.
    names: by label, of each input that names its classes. Other labels are numbers, and
      named so.

  Returns:
    names by the output's label, and of each input its labels in the output. Nothing,
    if labels are so large that they number something else.
  """
  top = max((max(found) for found in labels.values()), default=0)
  if top >= class_labels.MAX_CLASSES:
    return [], {}
  numbers = {}
  for source, found in labels.items():
    known = [_plain(name) for name in names.get(source, ())]
    known += map(str, range(len(known), max(found) + 1))
    numbers[source] = known
  number = dict.fromkeys(itertools.chain.from_iterable(numbers.values()))
  number = {name: i for i, name in enumerate(number)}
  return list(number), {
    source: [number[name] for name in known] for source, known in numbers.items()
  }


def class_notes(
  given: dict[str, Any],
  found: dict[str, Any],
  names: dict[int, Sequence[str]],
  total: int,
) -> list[str]:
  """Where the output's classes come from, and what is odd about them, in lines.

  Args:
    given: inputs and settings.
    found: of `count_images`.
    names: by label, of each input that names its classes.
    total: the number of the output's classes.
  """
  specs = _specs(given)
  labels = found["labels"]
  lines = []
  named = [number for number in labels if names.get(number)]
  if total:
    inputs = [
      f"{len(names[number]):,} named by {specs[number]}"
      if number in named
      else f"{max(labels[number]) + 1:,} numbers of {specs[number]}"
      for number in labels
    ]
    lines.append(f"{total:,} class{'es' * (total > 1)}: {', '.join(inputs)}")
  elif labels:
    lines.append("no classes: labels are so large that they number no classes")
  if total and 0 < len(named) < len(labels):
    lines.append(
      "warning: some inputs name their classes, others number them, and a name never"
      " matches a number; if they share classes, ingest them into different outputs"
    )
  if found["text_labels"]:
    lines.append(
      f"warning: labels of kept images that are text, or over 63 bits, are left out:"
      f" {found['text_labels']:,}; give numbers, or sub-folders as classes"
    )
  return lines


def _specs(given: dict[str, Any]) -> list[str]:
  """The inputs by number, as they are shown."""
  return [errors.printable(spec) for spec in (*given["exclude"], *given["images"])]


def drop_warnings(found: dict[str, Any]) -> list[str]:
  """Names the reasons that drop most of the images they apply to, in lines.

  Args:
    found: of `count_images`.
  """
  kept = sum(counts.get("kept", 0) for counts in found["inputs"].values())
  dropped = count_dropped(found)
  lines = []
  left = kept + sum(dropped.values())
  checked = left  # all reasons before deduplication apply to all images
  for reason, count in dropped.items():
    if jobs.REASON[reason] >= jobs.REASON["exact duplicate"]:
      checked = left
    if reason in SUSPECT and count > checked / 2:
      lines.append(
        f"warning: {count:,} of {checked:,} images are dropped: {reason};"
        f" {SUSPECT[reason]}"
      )
    left -= count
  return lines


def _plain(name: str) -> str:
  """A name that is one line of UTF-8; those that differ in blanks alone are one."""
  return " ".join(os.fsencode(name).decode(errors="backslashreplace").split())


def count_dropped(found: dict[str, Any]) -> dict[str, int]:
  """How many images are dropped, by reason. found: of `count_images`."""
  reasons = collections.Counter()
  for counts in found["inputs"].values():
    reasons.update(counts)
  return {name: reasons[name] for name in jobs.REASONS if reasons[name]}


def counts_line(counts: dict[str, int]) -> str:
  """Counts in a line, such as "2 animated, 1 too small"."""
  return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def build(
  given: dict[str, Any],
  found: dict[str, Any],
  shards: list[dict[str, Any]],
  notes: list[str],
  warnings: list[str],
) -> dict[str, Any]:
  """The manifest.

  Args:
    given: inputs and settings.
    found: of `count_images`.
    shards: {"name", "records", "bytes", "sources"} of each.
    notes: of `class_notes`.
    warnings: of `drop_warnings`.
  """
  specs = _specs(given)
  return {
    "records": sum(shard["records"] for shard in shards),
    "bytes": sum(shard["bytes"] for shard in shards),
    "dropped": count_dropped(found),
    "inputs": [
      {"source": specs[number], **counts} for number, counts in found["inputs"].items()
    ],
    "bytes_of_kept_images_as_found": found["kept_bytes"],
    "images_by_shorter_side": found["shorter_side"],
    "classes": notes,
    "warnings": warnings,
    "shards": shards,
    "given": given,
    "versions": {
      "dinojax": dinojax.__version__,
      "python": platform.python_version(),
      **{name: importlib.metadata.version(name) for name in VERSIONS},
    },
  }
