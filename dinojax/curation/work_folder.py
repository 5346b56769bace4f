"""The work folder OUT.work: the same ingest resumes in it, any other is refused.

Beside OUT lies OUT.json with the inputs and settings. The work folder holds a copy:
when OUT.json was removed or is of another ingest, the folder's content is removed, not
taken for this ingest's.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from typing import Any

from dinojax import durable, errors
from dinojax.curation import jobs
from dinojax.runtime import ownership

SETTINGS_FILE = "settings.json"
# Settings that follow from others, and from the content of inputs and weights.
DERIVED = {
  "parts": "files of --images or --exclude were added or removed since then",
  "source": "files of --images or --exclude were added, removed or changed since then",
  "weights": "--checkpoint has other weights now",
}


def is_complete(job: jobs.Job, given: dict[str, Any]) -> bool:
  """Whether `job.out` is there, made with the same inputs and settings.

  Raises:
    UserError: it was made with others.
  """
  if not job.out.exists() or job.work.exists():
    return False
  found = durable.open_manifest(job.out, given, differences=_refuser(job))
  return bool(found.get("complete"))


@contextlib.contextmanager
def opened(job: jobs.Job, given: dict[str, Any]) -> Iterator[ownership.Claim]:
  """Has this process alone make `job.out`, with the inputs and settings of `given`.

  An attempt that ends before it has scanned anything leaves nothing that a corrected
  command would have to remove first.

  Raises:
    UserError: another process makes it, or another output is there; or the work folder
      was removed meanwhile.
  """
  path = job.work / SETTINGS_FILE
  if job.work.exists() and any(job.work.iterdir()) and not path.exists():
    raise errors.UserError(
      f"--out={job.out} needs the folder {job.work}, which is no ingest's: it has no"
      f" {SETTINGS_FILE}; remove it, or choose another --out"
    )
  with ownership.owned(job.out.parent, job.out.name, label=f"--out={job.out}") as claim:
    durable.open_manifest(job.out, given, differences=_refuser(job))
    if not job.out.exists():
      durable.remove_leftovers(job.out)
      if path.exists() and _read(path) != json.loads(json.dumps(given)):
        remove(job)
      if not path.exists():
        job.save(path, given)
    try:
      yield claim
    except BaseException as error:
      removed = not job.out.exists() and not path.exists()
      if not job.out.exists() and not any(job.work.glob("scan/*.npy")):
        remove(job)
        durable.manifest_path(job.out).unlink(missing_ok=True)
      expected = isinstance(error, errors.UserError) or not isinstance(error, Exception)
      if expected or not removed:
        raise
      remove(job)  # what tasks have made since
      raise errors.UserError(
        f"{job.work} was removed while this ingest worked there; restart the same"
        " command"
      ) from error


def remove(job: jobs.Job) -> None:
  """Removes the work folder, at once as others see it."""
  if job.work.exists():
    # Half of the folder would look like an unfinished ingest.
    renamed = durable.temporary_path(job.work)
    with durable.os_errors_as_user_errors(job.out):
      job.work.replace(renamed)
      shutil.rmtree(renamed)


def _read(path) -> Any:
  """The settings in a work folder; None if they are damaged."""
  try:
    return json.loads(path.read_bytes())
  except (ValueError, RecursionError):
    return None


def _refuser(job: jobs.Job):
  """Returns a function that refuses other settings, and says what to remove."""

  def refuse(there: dict, now: dict) -> list[str]:
    if differing := differences(there, now):
      places = job.out, durable.manifest_path(job.out), job.work
      found = " and ".join(str(place) for place in places if place.exists())
      state = "a finished" if there.get("complete") else "an unfinished"
      raise errors.UserError(
        f"--out={job.out} holds {state} ingest with other settings:"
        f" {'; '.join(differing)}. Choose another --out, or remove {found}"
      )
    return []

  return refuse


def differences(there: dict, now: dict) -> list[str]:
  """The settings in which an ingest differs from the one asked for now, in words."""
  names = [
    name
    for name in {**there, **now}
    if name != "complete" and there.get(name) != now.get(name)
  ]
  shown = []
  for name in names:
    if name == "network":
      shown += differences(there[name] or {}, now[name] or {})
    elif name not in DERIVED:
      shown.append(f"{name} {_text(there.get(name))}, now {_text(now.get(name))}")
  # The number of parts and the fingerprints follow from the flags, if those differ.
  return shown or [DERIVED[name] for name in names][-1:]


def _text(value: Any) -> str:
  return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
