"""The scan: whether an image can be used, its digests, hash and thumbnail."""

import hashlib
import io
import math

import cv2
import numpy as np
from PIL import Image

from dinojax.curation import fingerprints, inputs, jobs
from dinojax.data import arrays, images, layouts

# What is known of an image. size is in bytes; bytes and pixels are digests of the file
# and of the decoded image.
ROW = np.dtype(
  [
    ("reason", np.uint8),
    ("width", np.uint32),
    ("height", np.uint32),
    ("size", np.uint64),
    ("label", np.int64),
    ("bytes", np.uint64, 2),
    ("pixels", np.uint64, 2),
    ("hash", np.uint64),
    ("thumb", np.uint8, (fingerprints.THUMB, fingerprints.THUMB, 3)),
  ]
)


def scan(part: jobs.Part, *, job: jobs.Job) -> None:
  """Examines every image of a part, and saves rows and names; one task."""
  path = job.path("scan", part.number)
  if path.exists():
    return
  rows, names, details = [], [], {}
  for record in inputs.read(part, job):
    row, detail = examine(record, job.settings)
    rows.append(row)
    names.append(record.name)
    if detail:
      details[record.row] = detail
  job.save(job.path("names", part.number, "json"), names)
  job.save(job.path("details", part.number, "json"), details)
  job.save(path, np.array(rows, ROW))


def examine(record: inputs.Record, settings: jobs.Settings) -> tuple[np.void, str]:
  """What is known of an image, a ROW, and what exactly is wrong with it, or ""."""
  row = np.zeros((), ROW)
  row["label"] = record.label
  if record.image is None:
    row["reason"] = jobs.REASON["unreadable"]
    return row[()], record.trouble
  row["size"] = len(record.image)
  row["bytes"] = digest(record.image)
  try:
    probed = probe(record.image)
    row["height"], row["width"] = probed.height, probed.width
    reason, detail = _check_header(probed, settings)
    if not reason:
      pixels, _ = probed.decode(max_pixels=settings.max_pixels)
      row["pixels"] = digest(pixels, str(pixels.shape).encode())
      shown = arrays.shown(pixels)
      row["hash"] = fingerprints.perceptual_hash(shown)
      row["thumb"] = fingerprints.resize_to_square(shown, fingerprints.THUMB)
  except ValueError as error:
    reason, detail = "unreadable", str(error)
  row["reason"] = jobs.REASON[reason]
  return row[()], detail


def probe(image: bytes) -> images.Probed:
  """Reads the header of a picture, to be RGB, or of an array of any channels."""
  return images.probe(image, None if arrays.is_array(image) else layouts.RGB)


def _check_header(probed: images.Probed, settings: jobs.Settings) -> tuple[str, str]:
  """Why an image is dropped undecoded, as reason and detail, or two times ""."""
  short, long = sorted((probed.width, probed.height))
  size = f"{probed.width}x{probed.height} pixels"
  if short * long > settings.max_pixels:
    return "too many pixels", f"{size}, over --max_pixels={settings.max_pixels}"
  if probed.frames > 1 and not settings.animated:
    return "animated", f"{probed.frames} frames; see --animated"
  if short < settings.min_side:
    return "too small", f"{size}, under --min_side={settings.min_side}"
  if settings.max_aspect and long > settings.max_aspect * short:
    return "too elongated", f"{size}, over --max_aspect={settings.max_aspect:g}"
  return "", ""


def digest(content: bytes | np.ndarray, salt: bytes = b"") -> np.ndarray:
  """128 bits that identify content; uint64 [2]."""
  found = hashlib.sha256(salt)
  found.update(np.ascontiguousarray(content) if salt else content)
  return np.frombuffer(found.digest()[:16], np.uint64)


def shrunk(image: bytes, settings: jobs.Settings) -> bytes:
  """The image as it is written: as JPEG if it is over `settings.shorter_side`.

  Arrays, which no JPEG can hold, stay as they are.
  """
  if not settings.shorter_side or arrays.is_array(image):
    return image
  probed = images.probe(image)
  ratio = min(probed.height, probed.width) / settings.shorter_side
  if ratio <= 1:
    return image
  # A JPEG is decoded at a fraction of its size, as far as that is large enough.
  pixels, _ = probed.decode(int(math.log2(ratio)), max_pixels=settings.max_pixels)
  height, width = pixels.shape[:2]
  size = [max(round(x / ratio), 1) for x in (probed.width, probed.height)]
  size = min(size[0], width), min(size[1], height)
  resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
  file = io.BytesIO()
  Image.fromarray(resized).save(file, "JPEG", quality=settings.quality)
  return file.getvalue()
