"""Compilation cache: programs that XLA has compiled, on disk for the next start.

JAX finds the key of a program: its operations, compiler options, versions of JAX and
XLA, and devices. It writes entries in place, without a checksum where they are
compressed by zstandard, and never replaces one: a damaged entry is read at each start,
at best with an error. Here an entry appears whole (atomic writes), is read only if its
digest is right, and is replaced otherwise. Whatever fails costs time to compile, and a
line that says so.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import tempfile
import threading
import time

import jax

# It has no public place for a cache.
from jax._src import compilation_cache as jax_cache

from dinojax.reporting import console

MAX_BYTES = 2**30  # of a folder; the entries that were used last stay
DIGEST_BYTES = 32
PARTIAL = ".partial"
WRITING = 3600  # seconds; a partial file that is older is what a killed process left
PLACE = "_cache"  # in `jax_cache`, which has no public one: with `get`, `put`; or None


def keep_programs(folder: str | None) -> None:
  """Reads compiled programs from a folder, and writes new ones there, from now on.

  It does nothing where the environment names a cache of JAX's own and the folder is
  "auto", and in runs of several processes on GPUs. There they share the search for
  the fastest kernels, and one that found its program on disk would not take part.

  Args:
    folder: "auto" is dinojax in $XDG_CACHE_HOME, or in ~/.cache; "" or None: none.
  """
  own = jax.config.jax_compilation_cache_dir
  alone = jax.process_count() == 1 or jax.default_backend() != "gpu"
  if not folder or (folder == "auto" and own) or not alone:
    return
  if not hasattr(jax_cache, PLACE):
    console.say(f"warning: JAX {jax.__version__} takes no cache of compiled programs")
    return
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  setattr(jax_cache, PLACE, Programs(default_folder() if folder == "auto" else folder))


def default_folder() -> pathlib.Path:
  """A folder dinojax in the user's folder of caches."""
  base = os.environ.get("XDG_CACHE_HOME", "")
  base = base if os.path.isabs(base) else "~/.cache"  # as its specification wants
  return pathlib.Path(base, "dinojax").expanduser()


def processor() -> str:
  """A name for this host's processor: machine code of one may not run on another.

  A home is often shared by hosts of several kinds. Programs for accelerators are kept
  apart by it, too, which costs little.
  """
  about = platform.machine()
  with contextlib.suppress(OSError):
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    about = "\n".join([about, *sorted({x for x in lines if x.startswith(wanted)})])
  return f"{platform.machine()}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"


class Programs:
  """A folder of compiled programs, in the interface of JAX's caches; never raises."""

  def __init__(self, folder: str | os.PathLike, *, max_bytes: int = MAX_BYTES):
    """A cache in a folder, which need not exist."""
    self._folder = pathlib.Path(folder).expanduser() / "compiled" / processor()
    self._max_bytes = max_bytes
    self._lock = threading.Lock()
    self._warned = False

  def get(self, key: str) -> bytes | None:
    """The program of a key; None if it is not there, or damaged."""
    path = self._path(key)
    try:
      entry = path.read_bytes()
    except FileNotFoundError:
      return None
    except OSError as error:
      self._warn(f"{path} cannot be read ({error.strerror})")
      return None
    digest, program = entry[:DIGEST_BYTES], entry[DIGEST_BYTES:]
    if digest != hashlib.sha256(program).digest():
      self._warn(f"{path} is damaged")
      return None
    with contextlib.suppress(OSError):
      os.utime(path)
    return program

  def put(self, key: str, program: bytes) -> None:
    """Writes, or replaces, the program of a key, and removes the oldest beyond a size.

    Processes may do so at once: each writes a file of its own, and renames it.
    """
    partial = None
    try:
      # Whoever can write here has his code run: nobody but the user.
      self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
      number, partial = tempfile.mkstemp(suffix=PARTIAL, dir=self._folder)
      with open(number, "wb") as file:
        file.write(hashlib.sha256(program).digest() + program)
      os.replace(partial, self._path(key))
      self._remove_oldest()
    except OSError as error:
      self._warn(f"{self._folder} cannot be written ({error.strerror})")
      if partial:
        with contextlib.suppress(OSError):
          os.unlink(partial)

  def _path(self, key: str) -> pathlib.Path:
    return self._folder / key[-128:]  # ends with JAX's hash, behind the program's name

  def _remove_oldest(self) -> None:
    """Removes entries, and what killed processes left, beyond the folder's size."""
    entries, recent = [], time.time() - WRITING
    for entry in os.scandir(self._folder):
      with contextlib.suppress(FileNotFoundError):
        found = entry.stat()
        if not entry.name.endswith(PARTIAL) or found.st_mtime < recent:
          entries.append((found.st_mtime, found.st_size, entry.path))
    excess = sum(size for _, size, _ in entries) - self._max_bytes
    for _, size, path in sorted(entries):
      if excess <= 0:
        break
      with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
      excess -= size

  def _warn(self, what: str) -> None:
    """One line in the life of a process, however many programs are concerned."""
    with self._lock:
      first, self._warned = not self._warned, True
    if first:
      console.say(
        f"warning: compilation cache: {what}; programs are compiled again, results are"
        " the same. XDG_CACHE_HOME names another folder for it, and in a training"
        " config.compilation_cache, where '' turns it off"
      )
