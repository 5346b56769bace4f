"""Images of a tar file as img2dataset and webdataset write them.

KEY.jpg with KEY.json, KEY.txt or KEY.cls beside it, one after the other: what shares a
key is one sample. A label is the number in KEY.cls; other text there is no label.
"""

import re
import tarfile
from collections.abc import Iterator

ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
NO_NUMBER = -2  # label of an image whose .cls holds something else
BLOCK = 512  # bytes of tar's unit; an empty one ends the file


def is_one(path: str) -> bool:
  """Whether a file begins as a tar file does, compressed or not."""
  try:
    return tarfile.is_tarfile(path)
  except (OSError, EOFError):
    return True  # it may be one; reading it will tell what is wrong


def read(path: str) -> Iterator[tuple[str, bytes | None, int, str]]:
  """Yields (key, encoded image, label, "") for each image, in order.

  A label is a number, -1 if there is none, or NO_NUMBER.

  If the file is damaged, ("", None, -1, what is wrong) comes last: what lies behind the
  damage cannot be had.

  Raises:
    OSError: it cannot be read at all.
  """
  try:
    with tarfile.open(path, "r:*") as tar:
      for key, files in _samples(tar):
        label = _label(files.get("cls"))
        for ending in ENDINGS:
          if ending in files:
            yield key, files[ending], label, ""
      # tarfile takes a broken header for the end, and so does it a missing one.
      tar.fileobj.seek(tar.offset)
      end = tar.fileobj.read(BLOCK)
      if end.strip(b"\0") or len(end) < BLOCK:
        yield "", None, -1, "the file breaks off, or is damaged, behind the last image"
  except (tarfile.TarError, EOFError, ValueError) as error:
    yield "", None, -1, f"the file is damaged: {error}"


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
  """Yields (key, {ending: content}) of neighbouring files with the same key."""
  key, files = None, {}
  for member in tar:
    # A key ends at the first dot of the file's name: folders may have dots.
    split = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]+)", member.name)
    if not member.isfile() or not split:
      continue
    if split[1] != key:
      if files:
        yield key, files
      key, files = split[1], {}
    ending = split[2].lower()
    if ending in ENDINGS or ending == "cls":
      content = tar.extractfile(member).read()
      if len(content) < member.size:
        raise tarfile.ReadError(f"it ends within {member.name}")
      files[ending] = content
    tar.members = []  # it would keep a record of every file it has passed
  if files:
    yield key, files


def _label(text: bytes | None) -> int:
  """The number that a .cls file holds, -1 if there is no file."""
  if text is None:
    return -1
  try:
    return max(int(text), -1)
  except ValueError:
    return NO_NUMBER
