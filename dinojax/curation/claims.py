"""Who may work in OUT.work: the ingest that OUT.json describes, and no other.

The description lies in the folder of work as well: when OUT.json was removed or is of
another ingest, what was seen for the one before is removed, not taken for this one's.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from typing import Any

from dinojax import durable, errors
from dinojax.curation import jobs

GIVEN = "given.json"


@contextlib.contextmanager
def begun(job: jobs.Job, given: dict[str, Any]) -> Iterator[None]:
  """Has this process alone make `job.out`, of what is given.

  An end before any part was looked at leaves nothing that a corrected command would
  have to remove first.

  Raises:
    UserError: something else is there.
  """

  def refuse(there: dict, now: dict) -> list[str]:
    if differing := _differences(there, now):
      places = job.out, durable.manifest_path(job.out), job.work
      found = " and ".join(str(place) for place in places if place.exists())
      raise errors.UserError(
        f"--out={job.out} was begun otherwise ({'; '.join(differing)}); choose another"
        f" --out, or remove {found}"
      )
    return []

  path = job.work / GIVEN
  if job.work.exists() and any(job.work.iterdir()) and not path.exists():
    raise errors.UserError(
      f"--out={job.out} needs {job.work}, which does not say what ingest it is of;"
      " remove it, or choose another --out"
    )
  with contextlib.ExitStack() as stack:
    while True:
      durable.open_manifest(job.out, given, differences=refuse)
      try:
        stack.enter_context(durable.locked(job.out))
        break
      except FileNotFoundError:  # the one that was waited for has taken its claim back
        continue
    if not job.out.exists():
      durable.remove_leftovers(job.out)
      described = json.loads(json.dumps(given))
      if path.exists() and json.loads(path.read_text()) != described:
        remove_work(job)
      if not path.exists():
        job.save(path, described)
    try:
      yield
    except BaseException:
      if not job.out.exists() and not any(job.work.glob("scan/*.npy")):
        remove_work(job)
        durable.manifest_path(job.out).unlink(missing_ok=True)
      raise


def remove_work(job: jobs.Job) -> None:
  """Removes the folder of work, at once as others see it."""
  if job.work.exists():
    # Half of the folder would look like an unfinished ingest.
    gone = durable.temporary_path(job.work)
    with durable.os_errors_as_user_errors(job.out):
      job.work.replace(gone)
      shutil.rmtree(gone)


def _differences(there: dict, now: dict) -> list[str]:
  """What of an output that was begun is not as asked for now, in the user's words."""
  return [
    f"{name}: {there.get(name)} there, {now.get(name)} now"
    for name in {**there, **now}
    if name != "complete" and there.get(name) != now.get(name)
  ]
