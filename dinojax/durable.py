"""Files that are whole whenever they have a name, and whose origin is known.

A kill, a full disk or a power failure leaves a file as it was before, or as it should
be. Beside an output OUT lies OUT.json, its manifest: all that makes it what it is, and
whether it is complete.
"""

import contextlib
import fcntl
import glob
import io
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator

from dinojax import errors


def claim(
  out: pathlib.Path, manifest: dict, *, differences: Callable[[dict, dict], list[str]]
) -> dict:
  """Writes the manifest of `out`, or checks the one that is there; returns that.

  A new one says `"complete": false`, until `declare` says otherwise.

  Args:
    out: the file or folder to be written.
    manifest: all that makes it what it is; JSON.
    differences: (manifest there, this one) to what keeps them from being of one output,
      in the user's words.

  Raises:
    UserError: `out` is something else, of this command or not, or cannot be written.
  """
  path = manifest_path(out)
  manifest = {**json.loads(json.dumps(manifest)), "complete": False}
  strange = out.exists()  # asked first: another process may be making both
  if not path.exists():
    if strange:
      raise errors.UserError(
        f"--out={out} exists without {path.name}, which would tell what it holds;"
        " remove it, or choose another name"
      )
    with failing_in_one_line(out):
      out.parent.mkdir(parents=True, exist_ok=True)
      new = temporary(path)
      new.write_bytes(_text(manifest))
      sync(new)
      try:
        os.link(new, path)  # unlike a renaming, it spares one that is there by now
      except FileExistsError:
        pass
      except OSError:  # a file system without links
        os.replace(new, path)
      new.unlink(missing_ok=True)
      sync(path.parent)
  found = json.loads(path.read_text())
  if differing := differences(found, manifest):
    raise errors.UserError(
      f"--out={out} was begun otherwise ({'; '.join(differing)}); choose another --out,"
      f" or remove {out} and {path}"
    )
  return found


def declare(out: pathlib.Path, *, complete: bool) -> None:
  """Has the manifest say whether `out` is complete; UserError if it cannot.

  Nothing is written where it says so already. Call it while `out` is `locked`.
  """
  path = manifest_path(out)
  manifest = json.loads(path.read_text())
  if manifest.get("complete") != complete:
    with writing(path, out=out) as file:
      file.write(_text({**manifest, "complete": complete}))


def _text(manifest: dict) -> bytes:
  return (json.dumps(manifest, indent=2) + "\n").encode()


def manifest_path(out: pathlib.Path) -> pathlib.Path:
  """Returns where the manifest of `out` lies."""
  return out.with_name(f"{out.name}.json")


@contextlib.contextmanager
def locked(out: pathlib.Path) -> Iterator[None]:
  """Keeps other processes waiting until this one is done with a claimed `out`."""
  path = manifest_path(out)
  with contextlib.ExitStack() as stack:
    while True:
      file = stack.enter_context(open(path))
      with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)
      if os.path.samestat(os.fstat(file.fileno()), path.stat()):
        break  # otherwise `declare` has put another file there while this one waited
      file.close()
    yield


@contextlib.contextmanager
def writing(path: pathlib.Path, *, out: pathlib.Path) -> Iterator[io.BufferedWriter]:
  """A binary file that gets its name, `path`, when all is written and synced.

  Until then it lies beside `out`, which it belongs to: some readers of a folder take
  each file in it for theirs.

  Raises:
    UserError: it cannot be written.
  """
  new = temporary(out.with_name(f"{out.name}.{path.name}"))
  with failing_in_one_line(out):
    try:
      with open(new, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      os.replace(new, path)
      sync(path.parent)
    finally:
      new.unlink(missing_ok=True)


def temporary(path: pathlib.Path) -> pathlib.Path:
  """Returns a new name beside `path`, another one each time."""
  return path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")


def sweep(out: pathlib.Path) -> None:
  """Removes what killed processes left of `out` under temporary names."""
  for path in out.parent.glob(f".{glob.escape(out.name)}.*.new"):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def sync(path: pathlib.Path) -> None:
  """Has the disk keep a file, or the names in a folder."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def failing_in_one_line(out: pathlib.Path) -> Iterator[None]:
  """Turns what a file system raises into a UserError."""
  try:
    yield
  except OSError as error:
    raise errors.UserError(
      f"--out={out} cannot be written ({error.strerror or error}); make room there, or"
      " let it be written to; the same command goes on"
    ) from error
