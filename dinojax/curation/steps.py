"""The steps of an ingest: scan, deduplicate, embed, sample, write.

JAX and faiss are loaded only where images are embedded.
"""

from __future__ import annotations

import functools
import typing

from dinojax import durable, errors
from dinojax.curation import (
  candidates,
  engine,
  examine,
  inputs,
  jobs,
  manifest,
  near_duplicates,
  output,
  report,
  work_folder,
)
from dinojax.runtime import ownership

if typing.TYPE_CHECKING:
  from dinojax.curation import embedding


def choose_images(
  job: jobs.Job, parts: list[jobs.Part], network: embedding.Network | None, options
) -> None:
  """Scans all images and drops some of them, step by step.

  Args:
    job: the ingest.
    parts: all of its parts.
    network: for --near_cosine and --sample; None without them.
    options: Beam's.
  """
  engine.run_tasks(
    functools.partial(examine.scan, job=job),
    [part for part in parts if not job.path("scan", part.number).exists()],
    options=options,
    label="scanning images",
    count_done=engine.file_counter(job.work / "scan"),
  )
  images = sum(len(job.rows(part.number)) for part in parts)
  if job.settings.exact != "off":
    candidates.drop_exact(job, parts, images, options)
  if job.settings.near_bits >= 0:
    pairs = candidates.near_pairs(job, parts, images, options)
    near_duplicates.drop_duplicates(
      *(job, parts, pairs, options),
      **dict(step="near", reason="near duplicate"),
      is_duplicate=near_duplicates.same_thumbnails,
    )
  if network:
    from dinojax.curation import embedding

    engine.run_tasks(
      functools.partial(embedding.compute_features, job=job, network=network),
      [part for part in parts if not job.path("features", part.number).exists()],
      # One process has the accelerators.
      options=engine.in_this_process(options),
      label="embedding images",
      count_done=engine.file_counter(job.work / "features"),
    )
    if job.settings.near_cosine:
      pairs = embedding.candidate_pairs(job, parts, images, options)
      near_duplicates.drop_duplicates(
        *(job, parts, pairs, options),
        **dict(step="embedding", reason="similar embedding"),
        is_duplicate=embedding.similar,
      )
    if job.settings.sample:
      embedding.drop_unsampled(job, parts, options)


def write_output(
  job: jobs.Job,
  parts: list[jobs.Part],
  given: dict,
  options,
  claim: ownership.Claim,
) -> None:
  """Writes shards, manifest and reports of the kept images, and gives OUT its name.

  Args:
    job: the ingest, whose images are chosen.
    parts: all of its parts.
    given: inputs and settings, for the manifest.
    options: Beam's.
    claim: checked once more before OUT appears.

  Raises:
    UserError: no image is kept, or OUT cannot be written.
  """
  counts = {
    part.number: len(job.kept_ids(part.number)) for part in parts if not part.excluded
  }
  plan = output.layout(job, counts)
  found = manifest.count_images(job, parts)
  if not plan:
    message = _none_kept(job, parts, manifest.count_dropped(found))
    work_folder.remove(job)  # a corrected command starts afresh
    raise errors.UserError(message)
  folder = job.work / "out"
  class_names = inputs.class_names(parts, job.settings)
  names, labels = manifest.classes(found["labels"], class_names)
  engine.run_tasks(
    functools.partial(
      output.write_shard, job=job, parts=parts, plan=plan, labels=labels
    ),
    [i for i in range(len(plan)) if not job.path("shards", i, "json").exists()],
    options=options,
    label="writing shards",
    count_done=engine.file_counter(job.work / "shards"),
  )
  shards = [output.shard_summary(job, parts, plan, i) for i in range(len(plan))]
  notes = manifest.class_notes(given, found, class_names, len(names))
  content = manifest.build(given, found, shards, notes, manifest.drop_warnings(found))
  with durable.os_errors_as_user_errors(job.out):
    output.write_metadata(job, folder, shards, names)
  report.write(job, parts, content, folder)
  job.save(folder / "manifest.json", content)
  claim.check()
  with durable.os_errors_as_user_errors(job.out):
    folder.replace(job.out)
    durable.fsync(job.out.parent)


def _none_kept(job: jobs.Job, parts: list[jobs.Part], dropped: dict[str, int]) -> str:
  """The message where all images are dropped; the reports are not written then."""
  for name, reason, detail, match, *_ in report.dropped_images(job, parts):
    why = detail or (f"see {match}" if match else "")
    return (
      f"no image of --images is kept ({manifest.counts_line(dropped)}); the first,"
      f" {name}, is dropped as {reason}{f' ({why})' if why else ''}; --help lists the"
      " options that drop images"
    )
  return "no image of --images is kept, since none was found; check the paths"
