"""Folders below a folder, each real one once on a path, and files that match a pattern.

A link may lead to a folder that it lies in: who follows it reads the same files again
and again, and of two such links without an end.
"""

import glob
import os
from collections.abc import Iterator

from dinojax import errors


def folders(
  root: str, where: str | None, links: list[str]
) -> Iterator[tuple[str, list[os.DirEntry]]]:
  """Yields each folder below `root`, relative to it, with what it holds but folders.

  Links to folders are followed, unless to one that they lie in. Hidden files and
  folders are skipped.

  Args:
    root: where to begin.
    where: the beginning of an error's message; None: a folder that cannot be listed is
      passed over.
    links: to which those are added that are not followed.

  Raises:
    errors.UserError: a folder cannot be listed.
  """
  waiting = [("", frozenset())]
  while waiting:
    folder, above = waiting.pop()
    try:
      status = os.stat(os.path.join(root, folder))
      identity = status.st_dev, status.st_ino
      if identity in above:
        links.append(folder)
        continue
      with os.scandir(os.path.join(root, folder)) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
      if where is None:
        continue
      raise errors.of_disk(error)(
        f"{where} cannot be listed: {error}; check permissions"
      ) from error
    above |= {identity}
    others = []
    for entry in shown:
      if _is_folder(entry):
        waiting.append((os.path.join(folder, entry.name), above))
      else:
        others.append(entry)
    yield folder, others


def _is_folder(entry: os.DirEntry) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # A link to itself.
    return False


def matches(pattern: str, links: list[str]) -> set[str]:
  """Returns the paths that a pattern matches, with ** for any folders.

  Args:
    pattern: as glob takes it.
    links: to which those are added that are not followed, as by `folders`.
  """
  parts = pattern.split(os.sep)
  if "**" not in parts:
    return set(glob.glob(pattern))
  place = parts.index("**")
  head, rest = os.sep.join(parts[:place]), os.sep.join(parts[place + 1 :]) or "*"
  top = os.sep if place else ""  # of a pattern that begins with **
  found = set()
  for base in glob.glob(head) if head else [top]:
    for folder, _ in folders(base or os.curdir, None, links):
      below = glob.escape(os.path.join(base, folder))
      found |= matches(os.path.join(below, rest), links)
  return found


def about(links: list[str]) -> str:
  """Returns a note about links that were not followed."""
  return f"skips {some(links, 'link')}, each to a folder that it lies in"


def some(names: list[str], what: str) -> str:
  """Returns such as "2 links (the first: a/up)" of names in any order."""
  first = errors.printable(min(names))
  return f"{len(names):,} {what}{'s' * (len(names) > 1)} (the first: {first})"
