"""Exhibits: what of an album is shown, as tables and as sections of a page."""

import numpy as np

from dinojax.pictures import (
  album,
  components,
  crops,
  drawing,
  planes,
  sections,
  similarity,
  tables,
)

Cell, Table = tables.Cell, tables.Table
HEADS = 4  # attention heads that are shown one by one
BRIGHTEST = 98  # percentile of attention that is drawn as its largest
SIMILARITIES = 4  # images whose similarities a page holds: a MB each at 32 x 32 patches
AROUND = 1  # patches shown on each side of a patch that a prototype takes
SCORED = 1_000  # queries, evenly spaced, whose nearest neighbour is counted
LEAST_MAP = 3  # images, below which a map shows nothing


def all_tables(shown: album.Album) -> list[Table]:
  """Every exhibit as a table; what there is nothing to show of is left out."""
  found = [crops.table(shown.cropped)] if shown.cropped else []
  found += [components_table(shown.patches), similarity_table(shown.patches)]
  found.append(attention_table(shown.patches, shown.pool))
  if shown.neighbours[0].size:
    found.append(gallery_table(shown))
  for name in shown.taken:
    found.append(prototypes_table(shown, name))
  return found


def all_sections(shown: album.Album, views: dict[str, np.ndarray]) -> list[dict]:
  """Every exhibit as a section in JSON, with those that answer to the mouse.

  Args:
    shown: the album.
    views: of `map_views`.
  """
  found = [tables.section(table) for table in all_tables(shown)]
  some = shown.patches
  places = [section["name"] for section in found]
  found[places.index("similarity")] = sections.similarity_section(
    some.images[:SIMILARITIES],
    some.tokens[:SIMILARITIES],
    some.names[:SIMILARITIES],
    grid=(some.grid, some.grid),
  )
  if views:
    many = shown.many
    found.append(
      sections.map_section(views, many.thumbs, many.labels, many.names, many.classes)
    )
  return found


def map_views(many: album.Many, *, umap: bool) -> dict[str, np.ndarray]:
  """The map's points by the name of the method; {} of too few images.

  Raises:
    UserError: UMAP is wanted and cannot be had.
  """
  if len(many.labels) < LEAST_MAP:
    return {}
  views = {"PCA": planes.pca(many.features)}
  if umap:
    views["UMAP"] = planes.umap(many.features)
  return views


def components_table(some: album.Patches) -> Table:
  """PCA of patch tokens as colours, by image and jointly, and the foreground."""
  side = some.grid
  count, _, width = some.tokens.shape
  coloured = components.colours(some.tokens.reshape(count, side, side, width))
  rows = [
    [
      Cell(image, name),
      *(Cell(coloured[kind][i], squares=True) for kind in ("own", "joint")),
      Cell(
        coloured["foreground"][i], f"{coloured['mask'][i].mean():.0%}", squares=True
      ),
    ]
    for i, (image, name) in enumerate(zip(some.images, some.names, strict=True))
  ]
  return Table(
    "components",
    "Principal components of patch tokens",
    "The first three principal components of the patch tokens as red, green and blue:"
    f" of each image by itself, then of all {len(rows)} together, where equal colours"
    " mean equal features across images. Foreground: the first joint component parts"
    " the patches in two; the components of the part that is less at the borders are"
    f" coloured. Computed at {side} x {side} patches.",
    ("image", "image alone", "jointly", "foreground"),
    rows,
  )


def similarity_table(some: album.Patches) -> Table:
  """Similarity of some patches of each image to all of its patches."""
  return sections.similarity_table(
    some.images, some.tokens, some.names, grid=(some.grid, some.grid)
  )


def attention_table(some: album.Patches, pool: str) -> Table:
  """Attention of the image feature's query: the mean of the heads, and some heads."""
  rows, side = [], some.grid
  for image, name, weights in zip(some.images, some.names, some.attention, strict=True):
    maps = [weights.mean(0), *weights[:HEADS]]
    row = [Cell(image, name)]
    for values in maps:
      most = np.percentile(values, BRIGHTEST)  # few patches take much of it
      light = drawing.stretched(np.minimum(values, most).reshape(side, side))
      row.append(
        Cell(drawing.heat(light), f"{values.sum():.0%} on patches", squares=True)
      )
    rows.append(row)
  query = "of the CLS token to each patch"
  if pool == "gap":
    query = "to each patch, the mean over the queries of all patches, since the image"
    query += " feature is their mean"
  count = some.attention.shape[1]
  each = (f"head {i + 1}" for i in range(min(HEADS, count)))
  return Table(
    "attention",
    "Attention of the last block",
    f"Attention {query}. Each map goes from its least value, dark, to its {BRIGHTEST}th"
    " percentile; what is missing to 100% goes to the CLS token and registers.",
    ("image", f"mean of {count}", *each),
    rows,
  )


def gallery_table(shown: album.Album) -> Table:
  """Query images and their nearest neighbours among the others, right and wrong."""
  many = shown.many
  found, cosines = shown.neighbours
  classes = many.classes

  def label(number):
    value = int(many.labels[number])
    if value < 0:
      return ""
    return classes[value] if value < len(classes) else str(value)

  marks = similarity.marks(many.labels, shown.queries, found)
  rows = []
  for query, near, cosine, mark in zip(
    shown.queries.tolist(),
    found.tolist(),
    cosines.tolist(),
    marks.tolist(),
    strict=True,
  ):
    row = [Cell(shown.cells[query], label(query) or many.names[query])]
    for number, similar, right in zip(near, cosine, mark, strict=True):
      text = f"{similar:.2f} {label(number)}".strip()
      row.append(Cell(shown.cells[number], text, right))
    rows.append(row)
  return Table(
    "neighbours",
    "Nearest neighbours",
    f"Images and their nearest neighbours among {len(many.labels):,}, by the cosine"
    f" similarity of the image feature.{_score(many)}",
    ("query", *(f"nearest {i + 1}" for i in range(found.shape[1]))),
    rows,
  )


def _score(many: album.Many) -> str:
  """A sentence: how often the nearest other image has the label, of SCORED at most."""
  count = len(many.labels)
  queries = np.unique(np.linspace(0, count - 1, SCORED).round().astype(int))
  found, _ = similarity.nearest(many.features, queries, 1)
  marks = similarity.marks(many.labels, queries, found)
  if not marks.any():
    return ""
  known = marks[marks != 0]
  share = (known > 0).mean()
  return f" For {share:.0%} of {len(known):,} images the nearest has their label."


def prototypes_table(shown: album.Album, what: str) -> Table:
  """What each of some prototypes takes most: "images" or "patches"."""
  taken, rows = shown.taken[what], []
  for prototype, count, best in zip(
    taken.prototypes.tolist(), taken.counts.tolist(), taken.rows.tolist(), strict=True
  ):
    make = {"images": shown.cells.get, "patches": lambda i: patch(shown.patches, i)}
    cells = [Cell(make[what](i)) for i in best]
    cells[0] = cells[0]._replace(caption=f"no. {prototype}: {count:,}")
    rows.append(cells)
  total = {
    "images": len(shown.many.labels),
    "patches": shown.patches.tokens[..., 0].size,
  }[what]
  head = {"images": "DINO", "patches": "iBOT"}[what]
  return Table(
    f"prototypes_{what}",
    f"Prototypes of {what}",
    f"A row is a prototype of the {head} head, with its number and how many of"
    f" {total:,} {what} are nearest to it, and the {what} that it takes most."
    f" {taken.used:,} of {taken.total:,} prototypes are the nearest of at least one.",
    (),
    rows,
  )


def patch(some: album.Patches, number: int) -> np.ndarray:
  """A patch with those around it, and a frame.

  Args:
    some: the images.
    number: of the patch, counted over all images.
  """
  image, place = divmod(number, some.grid**2)
  row, column = divmod(place, some.grid)
  side = some.images.shape[1] // some.grid
  margin = AROUND * side
  padded = np.pad(
    some.images[image], [[margin, margin], [margin, margin], [0, 0]], mode="edge"
  )
  whole = (2 * AROUND + 1) * side
  window = padded[row * side :, column * side :][:whole, :whole]
  zoom = max(tables.SIDE // whole, 1)
  window = window.repeat(zoom, 0).repeat(zoom, 1)
  low, high = margin * zoom, (margin + side) * zoom
  box = np.array([[low, low], [high, low], [high, high], [low, high]])
  return drawing.outlined(window, [box], [(255, 60, 60)], width=2)
