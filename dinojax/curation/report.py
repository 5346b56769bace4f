"""Reports: dropped.csv lists all dropped images, report.html shows some of them.

report.html is one file that needs nothing else. It shows counts, and dropped images
beside the images that they match.
"""

import base64
import csv
import html
import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from dinojax import durable
from dinojax.curation import examine, inputs, jobs
from dinojax.data import arrays, images

SAMPLES = 24  # pictures of each reason
SIDE = 128  # pixels of a picture
STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse } td, th { padding: .2em 1em; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #ccc }
figure { display: inline-block; margin: .5em; vertical-align: top }
figcaption { font-size: 11px; max-width: 20em; overflow-wrap: anywhere }
"""


def dropped_images(
  job: jobs.Job, parts: list[jobs.Part]
) -> Iterator[tuple[str, str, str, str, int, int]]:
  """Yields name, reason, detail, matching image, and both ids, of dropped images."""
  drops = job.drops()
  matches = [np.empty(0, np.uint64), *(table["match"] for table in drops)]
  matches = np.unique(np.concatenate(matches))
  names = dict(zip(matches.tolist(), _names(job, matches), strict=True))
  for part in parts:
    if part.excluded:
      continue
    reasons = job.reasons(part.number)
    own = job.names(part.number)
    ids = np.flatnonzero(reasons) + part.first_id
    match_of = {}
    for table in drops:
      start, stop = np.searchsorted(
        table["id"], np.array([part.first_id, part.first_id + (1 << 32)], np.uint64)
      )
      span = table[start:stop]
      match_of |= dict(zip(span["id"].tolist(), span["match"].tolist(), strict=True))
    details = job.details(part.number)
    for image in ids.tolist():
      row = image - part.first_id
      match = match_of.get(image, image)
      yield (
        own[row],
        jobs.REASONS[reasons[row]],
        details.get(row, ""),
        names[match] if match != image else "",
        image,
        match,
      )


def _names(job: jobs.Job, ids: np.ndarray) -> list[str]:
  """Names of images; each part's are read once."""
  return [
    names[row]
    for number, group in itertools.groupby(ids.tolist(), lambda image: image >> 32)
    for names in [job.names(number)]
    for row in [image & 0xFFFFFFFF for image in group]
  ]


def write(
  job: jobs.Job, parts: list[jobs.Part], manifest: dict[str, Any], folder
) -> None:
  """Writes report.html and dropped.csv."""
  chosen = {}
  with durable.os_errors_as_user_errors(job.out):
    with open(folder / "dropped.csv", "w", encoding="utf-8", newline="") as file:
      table = csv.writer(file)
      table.writerow(["name", "reason", "detail", "matches"])
      for *line, image, match in dropped_images(job, parts):
        table.writerow(line)
        # The same few each time, from all over: those of the lowest random keys.
        key = int(jobs.splitmix64(np.uint64([image]), job.settings.seed)[0])
        samples = chosen.setdefault(line[1], [])
        samples.append((key, image, match, line))
        samples.sort()
        del samples[SAMPLES:]
    wanted = {
      x for samples in chosen.values() for _, a, b, _ in samples for x in (a, b)
    }
    pictures = dict(_pictures(job, parts, sorted(wanted)))
    text = _page(job, manifest, chosen, pictures)
    (folder / "report.html").write_text(text, encoding="utf-8")


def _pictures(
  job: jobs.Job, parts: list[jobs.Part], ids: list[int]
) -> Iterator[tuple[int, str]]:
  """Yields images as data URLs, those that can be decoded."""
  for number, group in itertools.groupby(ids, lambda image: image >> 32):
    rows = [image & 0xFFFFFFFF for image in group]
    for record in inputs.read(parts[number], job, rows):
      try:
        pixels, _ = examine.probe(record.image or b"").decode(
          images.MAX_HALVINGS, max_pixels=job.settings.max_pixels
        )
      except ValueError:
        continue
      picture = Image.fromarray(arrays.shown(pixels))
      picture.thumbnail((SIDE, SIDE))
      file = io.BytesIO()
      picture.save(file, "JPEG", quality=85)
      url = base64.b64encode(file.getvalue()).decode()
      yield (number << 32) + record.row, f"data:image/jpeg;base64,{url}"


def _page(job, manifest: dict, chosen: dict, pictures: dict) -> str:
  """The page's text."""
  name = html.escape("/".join(job.out.parts[-2:]))
  total = manifest["records"] + sum(manifest["dropped"].values())
  rows = [("kept", manifest["records"]), *manifest["dropped"].items()]
  lines = [
    "<!doctype html><meta charset=utf-8>",
    f"<title>{name}</title><style>{STYLE}</style><h1>Ingest of {name}</h1>",
    f"<p>{total:,} images were found, {manifest['records']:,} are kept, in"
    f" {len(manifest['shards'])} shards of {manifest['bytes']:,} bytes in all."
    " dropped.csv lists the others.",
    "<table><tr><th>images<th>number<th>share",
    *(f"<tr><td>{name}<td>{n:,}<td>{n / max(total, 1):.2%}" for name, n in rows),
    "</table><h2>Inputs</h2><table><tr><th>source<th>images<th>kept<th>bytes",
    *(
      f"<tr><td>{html.escape(x['source'])}<td>{x['images']:,}"
      f"<td>{x.get('kept', 'excluded')}<td>{x['bytes']:,}"
      for x in manifest["inputs"]
    ),
    "</table>",
    *(f"<p>{html.escape(line)}" for line in manifest["classes"]),
    *(f"<p>{html.escape(line)}" for line in manifest["warnings"]),
    "<h2>Shorter side of kept images, pixels</h2><table>",
    *(
      f"<tr><td>{side}<td>{n:,}"
      for side, n in manifest["images_by_shorter_side"].items()
    ),
    "</table>",
  ]
  for reason, samples in chosen.items():
    lines.append(f"<h2>{reason}: {manifest['dropped'][reason]:,}</h2>")
    if any(match != image for _, image, match, _ in samples):
      lines.append("<p>Left the dropped image, right the one that it matches.")
    for _, image, match, (name, _, detail, match_name) in samples:
      shown = [x for x in dict.fromkeys((image, match)) if x in pictures]
      tags = "".join(f'<img src="{pictures[x]}">' for x in shown)
      texts = [html.escape(text) for text in (name, detail, match_name) if text]
      lines.append(f"<figure>{tags}<figcaption>{'<br>'.join(texts)}</figcaption>")
      lines.append("</figure>")
  given = html.escape(json.dumps(manifest["given"], indent=2))
  lines.append(f"<h2>Settings</h2><pre>{given}</pre>")
  return "\n".join(lines) + "\n"
