"""Atomic writes, and the manifest beside an output.

A kill, a full disk or a power failure leaves a file as it was before, or complete.
Beside an output OUT lies OUT.json, its manifest: all settings that make OUT what it is,
and whether it is complete.
"""

import contextlib
import errno
import fcntl
import glob
import io
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence

from dinojax import errors

# What the operating system reports, and the user's way out of it.
WAYS_OUT = {
  errno.ENOSPC: "make room there",
  errno.EDQUOT: "make room there, or raise the quota",
  errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
  errno.EACCES: "let this user write there",
  errno.EPERM: "let this user write there",
  errno.EROFS: "mount it writable",
}


def open_manifest(
  out: pathlib.Path,
  manifest: dict,
  *,
  differences: Callable[[dict, dict], list[str]],
  paths: Sequence[pathlib.Path] = (),
) -> dict:
  """Writes the manifest of `out`, or checks the one that is there; returns that.

  A new one has `"complete": false`, until `set_complete` changes it.

  Args:
    out: the file or folder to be written.
    manifest: all that makes it what it is; JSON.
    differences: (manifest there, this one) -> settings in which they are not of the
      same output, in the user's words.
    paths: all that `out` may consist of, where it is more than one file or folder.

  Raises:
    UserError: `out` is something else, of this command or not, or cannot be written.
  """
  path = manifest_path(out)
  manifest = {**json.loads(json.dumps(manifest)), "complete": False}
  there = [x for x in paths or [out] if x.exists()]  # asked first: another process
  if not path.exists():  # may be making all of it
    if there:
      one = len(there) == 1
      raise errors.UserError(
        f"{_listed(there)} exist{'s' * one} without {path.name}, which would say what"
        f" {'it holds' if one else 'they hold'}; remove {'it' if one else 'them'}, or"
        " choose another --out"
      )
    with os_errors_as_user_errors(out):
      out.parent.mkdir(parents=True, exist_ok=True)
      new = temporary_path(path)
      new.write_bytes(_text(manifest))
      fsync(new)
      try:
        os.link(new, path)  # unlike a rename, it keeps a manifest that is there by now
      except FileExistsError:
        pass
      except OSError:  # a file system without links
        os.replace(new, path)
      new.unlink(missing_ok=True)
      fsync(path.parent)
  found = read_manifest(out)
  if differing := differences(found, manifest):
    made = "made" if found.get("complete") else "begun"
    raise errors.UserError(
      f"--out={out} was {made} with other settings ({'; '.join(differing)}); choose"
      f" another --out, or remove {_listed([*there, path])}"
    )
  return found


def _listed(paths: Sequence[pathlib.Path]) -> str:
  return " and ".join(map(str, paths))


def check_file(path: str | None, *, flag: str, example: str) -> None:
  """Raises UserError if the file of a flag cannot be written, before any work.

  Args:
    path: of the file; None or "": none is written.
    flag: such as "--results".
    example: of a file's name.
  """
  if not path:
    return
  where = pathlib.Path(path).expanduser()
  if where.is_dir():
    reason = f"it is a folder; give a file, such as {example}"
  elif not where.parent.is_dir():
    reason = f"{where.parent} is no folder; make it first"
  elif not os.access(where if where.exists() else where.parent, os.W_OK):
    reason = "no permission; choose another place"
  else:
    return
  raise errors.UserError(f"{flag}={path} cannot be written: {reason}")


def write_json(path: str, content: dict, *, flag: str) -> None:
  """Writes the file of a flag as JSON, all or nothing; UserError if it cannot."""
  where = pathlib.Path(path).expanduser()
  text = json.dumps(content, indent=2, allow_nan=False) + "\n"
  try:
    with _named_when_complete(where, temporary_path(where)) as file:
      file.write(text.encode())
  except OSError as error:
    reason = error.strerror or error
    raise errors.of_disk(error)(f"{flag}={path} cannot be written: {reason}") from error


def read_manifest(out: pathlib.Path) -> dict:
  """Returns the manifest of `out`; UserError if it is damaged."""
  path = manifest_path(out)
  try:
    found = json.loads(path.read_bytes())
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict):
    raise errors.UserError(
      f"{path}, the manifest of --out={out}, is damaged; remove both, or choose another"
      " --out"
    )
  return found


def set_complete(out: pathlib.Path, *, complete: bool) -> None:
  """Marks `out` as complete, or not, in its manifest; UserError if it cannot.

  Nothing is written where the mark is right already. Call it while `out` is `locked`.
  """
  path = manifest_path(out)
  manifest = read_manifest(out)
  if manifest.get("complete") != complete:
    with atomic_write(path, out=out) as file:
      file.write(_text({**manifest, "complete": complete}))


def _text(manifest: dict) -> bytes:
  return (json.dumps(manifest, indent=2) + "\n").encode()


def manifest_path(out: pathlib.Path) -> pathlib.Path:
  """Returns where the manifest of `out` lies."""
  return out.with_name(f"{out.name}.json")


@contextlib.contextmanager
def locked(out: pathlib.Path) -> Iterator[None]:
  """Keeps other processes waiting, for a moment, by a lock on the manifest of `out`."""
  path = manifest_path(out)
  with contextlib.ExitStack() as stack:
    while True:
      file = stack.enter_context(open(path))
      with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)
      if os.path.samestat(os.fstat(file.fileno()), path.stat()):
        break  # otherwise `set_complete` has replaced the file while this one waited
      file.close()
    yield


@contextlib.contextmanager
def atomic_write(
  path: pathlib.Path, *, out: pathlib.Path
) -> Iterator[io.BufferedWriter]:
  """A binary file that gets its name, `path`, when all is written and synced.

  Until then it lies beside `out`, to which it belongs: some readers of a folder take
  each file in it for theirs.

  Raises:
    UserError: it cannot be written.
  """
  new = temporary_path(out.with_name(f"{out.name}.{path.name}"))
  with os_errors_as_user_errors(out), _named_when_complete(path, new) as file:
    yield file


@contextlib.contextmanager
def _named_when_complete(
  path: pathlib.Path, new: pathlib.Path
) -> Iterator[io.BufferedWriter]:
  try:
    with open(new, "wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(new, path)
    fsync(path.parent)
  finally:
    new.unlink(missing_ok=True)


def temporary_path(path: pathlib.Path) -> pathlib.Path:
  """Returns a new name beside `path`, another one each time."""
  return path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")


def remove_leftovers(out: pathlib.Path) -> None:
  """Removes what killed processes left of `out` under temporary names."""
  for path in out.parent.glob(f".{glob.escape(out.name)}.*.new"):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def fsync(path: pathlib.Path) -> None:
  """Flushes a file, or the names in a folder, to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def os_errors_as_user_errors(out: pathlib.Path) -> Iterator[None]:
  """Turns an OSError of writing into a UserError with the way out.

  A disk that fails may be well at the next start, which is a TemporaryError.
  """
  try:
    yield
  except OSError as error:
    way_out = WAYS_OUT.get(error.errno, "see to that")
    raise errors.of_disk(error)(
      f"--out={out} cannot be written ({error.strerror or error}); {way_out}, then"
      " restart the same command: it resumes"
    ) from error
