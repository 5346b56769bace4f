"""Jobs as ingest makes them of its flags."""

from dinojax.curation import jobs


def make_settings(**changes):
  """Settings for small images."""
  values = dict(
    **dict(min_side=8, max_aspect=6.0, max_pixels=10**6, animated=False),
    **dict(shorter_side=0, quality=90, exact="pixels", near_bits=6),
    **dict(near_difference=5.5, near_cosine=0.0, clusters=4, sample=0),
    **dict(records_per_shard=10, seed=0, image_column="", label_column=""),
  )
  return jobs.Settings(**values | changes)


def make_job(folder, **changes):
  """A job that makes FOLDER/out."""
  settings = make_settings(**changes)
  return jobs.Job(settings, folder / "out", folder / "out.work", hang_minutes=0)
