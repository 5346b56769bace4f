"""The scan: whether an image can be used, its digests, hash and thumbnail."""

import hashlib
import io
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from dinojax.curation import fingerprints, inputs, jobs
from dinojax.data import images

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
  for record in inputs.read(part, job.settings):
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
  reason, detail = _check_header(record.image, row, settings)
  if not reason:
    try:
      pixels = images.decode(record.image)
    except ValueError as error:
      reason, detail = "unreadable", " ".join(str(error).split())
    else:
      row["height"], row["width"] = pixels.shape[:2]  # EXIF may have turned it
      row["pixels"] = digest(pixels, str(pixels.shape).encode())
      row["hash"] = fingerprints.perceptual_hash(pixels)
      row["thumb"] = fingerprints.resize_to_square(pixels, fingerprints.THUMB)
  row["reason"] = jobs.REASON[reason]
  return row[()], detail


def _check_header(image: bytes, row: Any, settings: jobs.Settings) -> tuple[str, str]:
  """Why an image is dropped undecoded, as reason and detail, or two times ""."""
  try:
    with Image.open(io.BytesIO(image), formats=images.FORMATS) as opened:
      width, height = opened.size
      frames = 1 if settings.animated else _frames(opened)
  except UnidentifiedImageError:  # its text holds an address, another each time
    return "unreadable", "no image of a known format"
  except Exception as error:  # Pillow raises a dozen types on damaged bytes.
    return "unreadable", f"{type(error).__name__}: {error}"
  row["width"], row["height"] = width, height
  size = f"{width}x{height} pixels"
  if width * height > settings.max_pixels:
    return "too many pixels", f"{size}, over --max_pixels={settings.max_pixels}"
  if frames > 1:
    return "animated", f"{frames} frames"
  if min(width, height) < settings.min_side:
    return "too small", size
  if settings.max_aspect and max(width, height) > settings.max_aspect * min(
    width, height
  ):
    return "too elongated", size
  return "", ""


def _frames(opened: Image.Image) -> int:
  """The frames of an animation; 1 for a photo, even with smaller versions of it."""
  # Phones append previews and HDR gain maps to a JPEG (MPO), as further pictures.
  return 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)


def digest(content: bytes | np.ndarray, salt: bytes = b"") -> np.ndarray:
  """128 bits that identify content; uint64 [2]."""
  found = hashlib.sha256(salt)
  found.update(np.ascontiguousarray(content) if salt else content)
  return np.frombuffer(found.digest()[:16], np.uint64)


def shrunk(image: bytes, settings: jobs.Settings) -> bytes:
  """The image as it is written: as JPEG if it is over `settings.shorter_side`."""
  if not settings.shorter_side:
    return image
  pixels = images.decode(image)
  height, width = pixels.shape[:2]
  shrink = settings.shorter_side / min(height, width)
  if shrink >= 1:
    return image
  size = max(round(width * shrink), 1), max(round(height * shrink), 1)
  resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
  file = io.BytesIO()
  Image.fromarray(resized).save(file, "JPEG", quality=settings.quality)
  return file.getvalue()
